"""Sparse MLP: what winnowing means, and its computation by the kernels.   (floor 5 · engine)

SparseMlp     the definition, for any number of rows, in plain torch; it counts what it selects
WinnowedMlp   one layer of it by the kernels, a few rows at a time
Filler        work beside it, so that how much there is says nothing of the text
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64
from torch import Tensor

from winnow.engine.model import MlpInputs, activations, weighted_sum
from winnow.engine.sparsity.predictor import GatePredictor, Predictor
from winnow.engine.weights import Layer, MlpWeights
from winnow.kernels import Calls, Cells, Cpu, silu

SPARE = 3.0  # times the neurons that a layer's plan selected when it was measured


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
        kept = active * selected
        if index not in self._out_norms:
            self._out_norms[index] = layer.mlp.w_out.float().norm(dim=-1)
        norms = self._out_norms[index]
        numbers = (selected.count_nonzero(), fired.count_nonzero(), (fired & selected).count_nonzero())
        heard = ((rows.abs() @ norms).double().sum() for rows in (active, kept))
        self.counts[index] += torch.tensor(
            [fired.numel(), *map(float, (*numbers, *heard))], dtype=torch.float64
        )
        return weighted_sum(layer, kept)

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


@final
class WinnowedMlp:
    """One layer's MLP for a batch of rows: `select` lists each row's neurons, `apply` computes them.

    `select` wants the view that the predictor reads, as early as it is known, and may be left out where
    there is no predictor: then all neurons are computed. A row has the same bits for any number of threads
    and whatever stands beside it; a neuron that several rows select is read once.
    """

    def __init__(self, layer: MlpWeights, predictor: Predictor | None, calls: Calls, count: Cells) -> None:
        """Make the buffers, for as many rows as `count` has; no weight is copied.

        `count` is where it says how many neurons each row was computed from.
        """
        self.layer = layer
        self.predictor = predictor
        self.calls = calls
        n_neurons, batch = layer.mlp.n_neurons, len(count)
        is_gate = isinstance(predictor, GatePredictor)
        count[:] = n_neurons
        self._count = count
        self._indices = np.empty((batch, 0 if predictor is None else n_neurons), np.int32)
        self._gates = np.empty((batch, n_neurons), np.float32) if is_gate else None
        self._bias = None if layer.mlp_bias is None else layer.mlp_bias.numpy()

    @property
    def n_read(self) -> int:
        """How many neurons the last rows were computed from, one that several select counted once."""
        if self.predictor is None:
            return self.layer.mlp.n_neurons
        is_read = np.zeros(self.layer.mlp.n_neurons, bool)
        for indices, n in zip(self._indices, self._count, strict=True):
            is_read[indices[:n]] = True
        return int(np.count_nonzero(is_read))

    @property
    def listed(self) -> tuple[Int32[np.ndarray, "B _"], Cells, Float32[np.ndarray, "B F"] | None]:
        """Each row's neurons, those that count first, how many count, and all gates where there are any."""
        return self._indices, self._count, self._gates

    def n_bytes(self, n_read: int) -> int:
        """Return the bytes of weights and predictor that are read for `n_read` neurons."""
        records = self.layer.mlp
        if self.predictor is None:
            return n_read * records.record_bytes
        return int(self.predictor.bytes_read(records, n_read))

    def select(self, view: Float32[np.ndarray, "B D"]) -> None:
        """List the neurons that the next `apply` computes."""
        predictor = self.predictor
        if isinstance(predictor, GatePredictor):
            assert self._gates is not None
            predictor.apply(self.calls, self.layer, view, self._indices, self._count, self._gates)
        elif predictor is not None:
            predictor.apply(self.calls, view, self._indices, self._count)

    def apply(self, x: Float32[np.ndarray, "B D"], out: Float32[np.ndarray, "B D"]) -> None:
        """Write the MLP's output for each row of `x`, its bias included."""
        layer = self.layer
        if self.predictor is None:
            self.calls.dense_mlp(x, layer.mlp, layer.activation, out)
        else:
            self.calls.gathered_mlp(
                x, layer.mlp, self._indices, self._count, layer.activation, out, self._gates
            )
        if self._bias is not None:
            for row in out:
                self.calls.add(self._bias, row)


@final
class Filler:
    """Fills every step up to the same number of neurons in each layer, so that their number says nothing.

    A layer's budget is `SPARE` times the neurons that its plan selected when it was measured, at most all;
    a step that selects more is filled up to all. What is filled in is computed and thrown away: no bit of an
    answer changes. Does not level what is read of a neuron: of one that is selected and does not fire the
    kernel reads half, of one that is filled in all. Costs the bytes of what is filled in.
    """

    def __init__(self, densities: Sequence[float], n_neurons: int, cpu: Cpu) -> None:
        """Take the budgets from the layers' shares of `n_neurons`."""
        self.budgets = [min(math.ceil(SPARE * share * n_neurons), n_neurons) for share in densities]
        self._n_neurons = n_neurons
        self._cpu = cpu

    def fill(self, mlps: Sequence[WinnowedMlp], rows: Float32[np.ndarray, "B D"]) -> Int64[np.ndarray, "L B"]:
        """Compute what a step has left of its budgets, from any finite `rows`; return what it then counts."""
        counts = [self._fill(mlp, budget, rows) for mlp, budget in zip(mlps, self.budgets, strict=True)]
        return np.stack(counts)

    def _fill(self, mlp: WinnowedMlp, budget: int, rows: np.ndarray) -> Int64[np.ndarray, " B"]:
        indices, count, gates = mlp.listed
        if mlp.predictor is None:
            return count
        wanted = np.where(count <= budget, budget, self._n_neurons)
        left = np.zeros_like(indices)
        for row, (listed, n) in enumerate(zip(indices, count, strict=True)):
            is_free = np.ones(self._n_neurons, bool)
            is_free[listed[:n]] = False
            first = np.flatnonzero(is_free)[: wanted[row] - n]
            left[row, : len(first)] = first
        # silu, whatever the model's: it is zero nowhere, so that every neuron is read whole
        unused = np.empty_like(rows)
        self._cpu.gathered_mlp(rows, mlp.layer.mlp, left, wanted - count, silu, unused, gates)
        return wanted
