"""Sparse MLP: the definition of winnowing, and a count of what it selects.   (floor 5 · engine)"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from winnow.engine.model import MlpInputs, activations, weighted_sum
from winnow.engine.sparsity.predictor import Predictor
from winnow.engine.weights import Layer


@dataclass(frozen=True)
class LayerCounts:
    """Shares of one layer's neurons over a text; a share of nothing is 1.

    A neuron fires where its activation is not exactly zero: with SiLU all do, and only `density` and
    `weighted_recall` say anything.
    """

    density: float  # of all, selected
    fired: float  # of all, fired
    recall: float  # of those that fired, selected
    precision: float  # of those selected, fired
    weighted_recall: float  # of the sum of |activation| * |w_out|, what was selected


@final
class SparseMlp:
    """The definition of a winnowed MLP, to be plugged into `forward`; it counts as it goes.

    Equal to the dense MLP with the activations of unselected neurons set to zero.
    """

    def __init__(self, layers: Sequence[Predictor | None]) -> None:
        self.layers = layers
        # Per layer: neurons seen, selected, fired, both; contribution in all, selected.
        self.counts = torch.zeros(len(layers), 6, dtype=torch.float64)
        self._out_norms: dict[int, Tensor] = {}

    def __call__(self, index: int, layer: Layer, inputs: MlpInputs) -> Float[Tensor, "T D"]:
        """Return the MLP's output for the rows of `inputs`, computed from the selected neurons."""
        predictor = self.layers[index]
        active = activations(layer, inputs.own)
        fired = active != 0
        selected = torch.ones_like(fired) if predictor is None else predictor.selected(layer, inputs)
        if index not in self._out_norms:
            self._out_norms[index] = layer.mlp.w_out.float().norm(dim=-1)
        heard = active.abs() * self._out_norms[index]
        counted = (torch.ones_like(fired), selected, fired, fired & selected, heard, heard * selected)
        self.counts[index] += torch.stack([each.sum(dtype=torch.float64) for each in counted])
        return weighted_sum(layer, active * selected)

    def shares(self) -> tuple[LayerCounts, ...]:
        """Return what was counted, layer by layer."""
        return tuple(_shares(row) for row in self.counts)

    def overall(self) -> LayerCounts:
        """Return what was counted over all layers together."""
        return _shares(self.counts.sum(0))


def _shares(counts: Float64[Tensor, " 6"]) -> LayerCounts:
    seen, selected, fired, both, heard, heard_selected = counts.tolist()
    pairs = ((selected, seen), (fired, seen), (both, fired), (both, selected), (heard_selected, heard))
    return LayerCounts(*(part / whole if whole else 1.0 for part, whole in pairs))
