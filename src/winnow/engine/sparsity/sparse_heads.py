"""Sparse heads: what leaving heads out means, in plain torch; it counts.   (floor 5 · engine)

Keys and values of every head are kept, computed at once or when they are needed, so that a head left out at
one token is whole at the next. What is left out is the head's query, its attention and its part of the map
behind it. `DroppingHeads` is there to measure what that saves from being lost.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from winnow.engine.model import Dropped, HeadWatch
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


@final
class DroppingHeads:
    """An ablation: a head left out at one token drops that token's key and value, and never sees them again.

    No cache does so. It is for one sequence from its beginning, in one piece or several, and remembers what
    was dropped; `slot` says which heads are left out, and counts.
    """

    def __init__(self, slot: SparseHeads) -> None:
        """Nothing is dropped yet."""
        self.slot = slot
        self.dropped: dict[int, Bool[Tensor, "keys K"]] = {}

    def __call__(self, index: int, layer: Layer, x: Float32[Tensor, "T D"]) -> HeadWatch | Dropped:
        """Return what silences heads for the rows of `x`, and all that the heads have dropped until then."""
        watch, predictor = self.slot(index, layer, x), self.slot.layers[index]
        if predictor is None:
            return watch
        before = self.dropped.get(index, torch.empty(0, len(predictor.bias), dtype=torch.bool))
        self.dropped[index] = torch.cat([before, predictor.scores(x) <= 0])
        return Dropped(watch, self.dropped[index].T)


def silenced(
    mixed: Float32[Tensor, "T K sharers E"], kept: Bool[Tensor, "T K"]
) -> Float32[Tensor, "T K sharers E"]:
    """Return what the heads say with zeros for those that are not kept."""
    return mixed * kept[:, :, None, None]
