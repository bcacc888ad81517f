"""Lookahead: from which input a layer's neurons are foretold.   (floor 5 · engine)"""

from enum import StrEnum

from jaxtyping import Float32
from torch import Tensor

from winnow.engine.model import MlpInputs


class Lookahead(StrEnum):
    """From which input a layer's neurons are foretold."""

    SAME = "same-layer"  # the MLP's own input
    HALF = "half-layer"  # the input of the same layer's attention
    NEXT = "next-layer"  # the MLP input of the layer below; in layer 0 that of its attention

    def view(self, inputs: MlpInputs) -> Float32[Tensor, "T D"]:
        """Return the rows that a predictor with this lookahead reads."""
        views = {Lookahead.SAME: inputs.own, Lookahead.HALF: inputs.attention, Lookahead.NEXT: inputs.below}
        return views[self]
