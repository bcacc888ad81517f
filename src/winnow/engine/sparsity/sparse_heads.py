"""Sparse heads: what leaving heads out means, in plain torch; it counts.   (floor 5 · engine)

Keys and values of every head are kept, computed at once or when they are needed, so that a head left out at
one token is whole at the next. What is left out is the head's query, its attention and its part of the map
behind it.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from winnow.engine.model import HeadWatch
from winnow.engine.sparsity.predictor import HeadPredictor
from winnow.engine.weights import Layer


@final
class SparseHeads:
    """The definition of attention with some heads, to be plugged into `forward`."""

    def __init__(self, layers: Sequence[HeadPredictor | None]) -> None:
        """Count nothing yet."""
        self.layers = layers
        self.selected = torch.zeros(len(layers), dtype=torch.float64)
        self.seen = torch.zeros(len(layers), dtype=torch.float64)

    def __call__(self, index: int, layer: Layer, x: Float32[Tensor, "T D"]) -> HeadWatch:
        """Return what silences the heads that the layer's predictor does not select for the rows of `x`."""
        predictor = self.layers[index]

        def watch(mixed: Float32[Tensor, "T K sharers E"]) -> Float32[Tensor, "T K sharers E"]:
            kept = torch.ones(mixed.shape[:2], dtype=torch.bool)
            if predictor is not None:
                kept = predictor.scores(x) > 0
            self.selected[index] += kept.sum()
            self.seen[index] += kept.numel()
            return silenced(mixed, kept)

        return watch

    @property
    def density(self) -> float:
        """Share of heads selected, over all layers and rows; 1 before the first."""
        return float(self.selected.sum() / self.seen.sum()) if self.seen.any() else 1.0


def silenced(
    mixed: Float32[Tensor, "T K sharers E"], kept: Bool[Tensor, "T K"]
) -> Float32[Tensor, "T K sharers E"]:
    """Return what the heads say with zeros for those that are not kept."""
    return mixed * kept[:, :, None, None]
