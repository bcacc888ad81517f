"""Shapes: one letter per meaning, in the whole project.   (floor 0 · base)

Every public tensor argument spells its shape with these letters, ``Float[Tensor, "B D"]``; a single
axis is written with a leading space, ``Int32[Tensor, " A"]``. A house test holds src to the table.
"""

from types import MappingProxyType

LETTERS = MappingProxyType(
    {
        "A": "active count: neurons or heads selected for computation",
        "B": "batch",
        "D": "model width",
        "E": "head width",
        "F": "feed-forward width: neurons of one layer",
        "H": "heads",
        "K": "key-value heads",
        "L": "layers",
        "M": "columns",
        "N": "rows",
        "R": "rank",
        "T": "tokens",
        "V": "vocabulary",
    }
)
