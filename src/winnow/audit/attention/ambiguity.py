"""Ambiguity: how many directions inputs can move in without the maps changing.   (floor 5 · audit)

one head, W symmetric, positive       d (d - 1) / 2      X -> W^-1/2 O W^1/2 X
one head, any W of full rank          d / 2              what commutes with it
one head of rank r                    d - 2 r a token    what neither query nor key sees, and more
two heads or more, ranks enough       0                  isolated; X and -X make equal maps
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64

from winnow.audit.attention.continuous import DENSE, Heads
from winnow.base.errors import UsageError

GAP = 1e-9  # relative singular value below which a direction is free


@final
@dataclass(frozen=True)
class Ambiguity:
    """Rank of the Jacobian at X, its condition on what it sees, and the free directions.

    `equations` counts independent ones at most: fewer than `unknowns` and no method finds X without a
    vocabulary. `kind` says in words what is free.
    """

    rank: int
    unknowns: int
    equations: int
    condition: float
    kind: str

    @property
    def free(self) -> int:
        """Dimension of the set of inputs near X that make the same maps."""
        return self.unknowns - self.rank


def ambiguity(heads: Heads, x: Float64[np.ndarray, "D T"]) -> Ambiguity:
    """Return what the maps of `heads` leave open at `x`, by the singular values of the Jacobian.

    Writes the Jacobian down: ``H T^2 (D T)`` numbers. Raises UsageError above 1500 unknowns.
    """
    if x.size > DENSE:
        raise UsageError(
            f"x has {x.size} entries; expected at most {DENSE}. Take fewer tokens or a narrower x."
        )
    jacobian = heads.jacobian(x)
    singular = np.linalg.svd(jacobian, compute_uv=False)
    seen = singular[singular > GAP * singular.max()]
    equations = int((heads.shown.sum(-1) - 1).clip(0).sum())
    return Ambiguity(
        len(seen),
        x.size,
        equations,
        float(seen[0] / seen[-1]),
        _kind(heads, x.size - len(seen), equations < x.size),
    )


def _kind(heads: Heads, free: int, is_short: bool) -> str:
    if free == 0:
        return "isolated: no other inputs nearby make these maps; X and -X do where there is no bias"
    if is_short:
        return "too few equations: more tokens or more heads are needed"
    w = heads.w[0]
    if len(heads.w) > 1:
        return f"{free} free directions: the heads together do not see all of X"
    if np.linalg.matrix_rank(w) < len(w):
        return f"{free} free directions: among them all that neither the head's query nor its key sees"
    if np.allclose(w, w.T):
        return f"{free} free directions: orthogonal maps in the metric of W"
    return f"{free} free directions: the group that leaves W as it is"
