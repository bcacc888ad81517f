"""Predictor: which neurons to compute, from a look at some input.   (floor 5 · engine)

    low-rank    score = up @ (down @ y) + bias,   neuron f is computed when score[f] > 0
    gate        neuron f is computed when |act(w_gate[f] x + b_gate[f])| > threshold[f]

`y` is the MLP's own input x or one that is known earlier (Lookahead). `down` [R, D] and `up` [F, R]
approximate the map from y to the pre-activations, so the score approximates those minus a threshold. A gate
is not approximated: it is the first half of a gated MLP, and what it leaves out it leaves out knowingly.
A neuron selected in vain costs its bytes and changes nothing, because its activation is computed exactly;
a neuron missed loses its contribution. That is the only error.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int32
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.engine.model import MlpInputs
from winnow.engine.weights import MlpWeights, product
from winnow.kernels import Calls, Cells, Matrix, NeuronRecords, QuantisedMatrix


class Lookahead(StrEnum):
    """From which input a layer's neurons are foretold."""

    SAME = "same-layer"  # the MLP's own input
    HALF = "half-layer"  # the input of the same layer's attention
    NEXT = "next-layer"  # the MLP input of the layer below; in layer 0 that of its attention

    def view(self, inputs: MlpInputs) -> Float32[Tensor, "T D"]:
        """Return the rows that a predictor with this lookahead reads."""
        views = {Lookahead.SAME: inputs.own, Lookahead.HALF: inputs.attention, Lookahead.NEXT: inputs.below}
        return views[self]


@final
@dataclass(frozen=True)
class LowRankPredictor:
    """Two thin matrices and a bias that stand for a layer's input weights.

    Reads ``R * (D + F)`` weights and F biases per token, against ``2 * D * F`` of the whole MLP. "svd" is
    the closed form of `whitened_svd`, "low-rank" one that was fitted further.
    """

    down: Matrix | QuantisedMatrix  # [R, D]
    up: Matrix | QuantisedMatrix  # [F, R]
    bias: Float[Tensor, " F"]  # the layer's own bias, the mean's share, minus each neuron's threshold
    kind: Literal["svd", "low-rank"] = "svd"
    lookahead: Lookahead = Lookahead.SAME

    @property
    def rank(self) -> int:
        """R, the width of the bottleneck."""
        return _shape(self.down)[0]

    @property
    def n_bytes(self) -> int:
        """Bytes of the predictor itself, all read per token."""
        return self.down.n_bytes + self.up.n_bytes + 4 * len(self.bias)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of `down`, `up` and `bias`."""
        return _shape(self.down), _shape(self.up), tuple(self.bias.shape)

    def shapes_for(self, width: int, n_neurons: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes that a model of these sizes needs at this rank."""
        return (self.rank, width), (n_neurons, self.rank), (n_neurons,)

    def scores(self, view: Float[Tensor, "T D"]) -> Float[Tensor, "T F"]:
        """Return the scores of rows of the view, as the kernel computes them up to the order of summation."""
        return (view @ self.down.weight.float().T) @ self.up.weight.float().T + self.bias

    def selected(self, layer: MlpWeights, inputs: MlpInputs) -> Bool[Tensor, "T F"]:
        """Say for each row which neurons are computed; `layer` is for predictors that read its weights."""
        return self.scores(self.lookahead.view(inputs)) > 0

    def apply(
        self, calls: Calls, view: Float32[np.ndarray, "B D"], indices: Int32[np.ndarray, "B F"], count: Cells
    ) -> None:
        """Write the neurons selected for rows of the view into `indices`, ascending, and how many."""
        calls.active_set(view, self.down, self.up, self._bias, 0, indices, count)

    @cached_property
    def _bias(self) -> Float32[np.ndarray, " F"]:
        return self.bias.numpy()

    def bytes_read(self, records: NeuronRecords, n_active: float | int) -> float | int:
        """Return the bytes that an MLP reads per token when `n_active` neurons are selected."""
        return self.n_bytes + n_active * records.record_bytes


@final
@dataclass(frozen=True)
class GatePredictor:
    """One threshold per neuron on the magnitude of its gate, for MLPs that have one.

    All gates are computed exactly, a third of the MLP's bytes; the other two thirds are read for the
    selected neurons only. Nothing is guessed: a neuron is left out because its gate is small.
    """

    thresholds: Float32[Tensor, " F"]  # of |activation(gate)|, 0 or more
    kind: ClassVar[Literal["gate"]] = "gate"
    lookahead: ClassVar[Lookahead] = Lookahead.SAME

    @property
    def n_bytes(self) -> int:
        """Bytes of the predictor itself, all read per token."""
        return 4 * len(self.thresholds)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of `thresholds`."""
        return (tuple(self.thresholds.shape),)

    def shapes_for(self, width: int, n_neurons: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes that a model of these sizes needs; `width` does not matter to a gate."""
        return ((n_neurons,),)

    def selected(self, layer: MlpWeights, inputs: MlpInputs) -> Bool[Tensor, "T F"]:
        """Say for each row which neurons are computed."""
        gates = layer.activation(product(inputs.own, layer.mlp.w_in) + layer.mlp.bias)
        return ~(gates.abs() <= self.thresholds)  # a gate that is not a number stays visible

    def apply(
        self,
        calls: Calls,
        layer: MlpWeights,
        x: Float32[np.ndarray, "B D"],
        indices: Int32[np.ndarray, "B F"],
        count: Cells,
        gates: Float32[np.ndarray, "B F"],
    ) -> None:
        """Write the selected neurons of each row into `indices`, ascending, how many, and all gates."""
        calls.gate_set(x, layer.mlp, self._thresholds, layer.activation, indices, count, gates)

    @cached_property
    def _thresholds(self) -> Float32[np.ndarray, " F"]:
        return self.thresholds.numpy()

    def bytes_read(self, records: NeuronRecords, n_active: float | int) -> float | int:
        """Return the bytes that an MLP reads per token when `n_active` neurons are selected."""
        gate_bytes = records.width * records.dtype.itemsize
        rest_bytes = records.record_bytes - gate_bytes
        return self.n_bytes + records.n_neurons * gate_bytes + n_active * rest_bytes


Predictor = LowRankPredictor | GatePredictor
HeadPredictor = LowRankPredictor  # of kv heads in the place of neurons, from the attention's own input


def _shape(matrix: Matrix | QuantisedMatrix) -> tuple[int, ...]:
    held = matrix.values if isinstance(matrix, QuantisedMatrix) else matrix.weight
    return tuple(held.shape)


@dataclass(frozen=True)
class CrossMoments:
    """How an MLP's own input x moves with a view y of it, in float64."""

    mean: Float[Tensor, " D"]  # of x
    covariance: Float[Tensor, "D D"]  # E[(x - mean x) (y - mean y)^T]


@dataclass(frozen=True)
class InputMoments:
    """Mean and covariance of what a predictor reads, in float64; `cross` where it is not the MLP's input."""

    mean: Float[Tensor, " D"]
    covariance: Float[Tensor, "D D"]
    cross: CrossMoments | None = None


@dataclass(frozen=True)
class Factors:
    """A whitened low-rank factorisation at full rank; a predictor of any rank is a slice of it."""

    down: Float[Tensor, "D D"]
    up: Float[Tensor, "F D"]
    weight_mean: Float[Tensor, " F"]  # w_in times the mean of the MLP's own input
    mean: Float[Tensor, " D"]  # of what is read
    bias: Float[Tensor, " F"]
    lookahead: Lookahead = Lookahead.SAME

    def predictor(self, rank: int, thresholds: Float[Tensor, " F"]) -> LowRankPredictor:
        """Return the best predictor of `rank`, firing where it expects pre-activations above `thresholds`.

        Held in int8: its rounding is far below what the low rank loses, and it halves the bytes.
        """
        down, up = QuantisedMatrix.of(self.down[:rank]), QuantisedMatrix.of(self.up[:, :rank])
        # The mean input passes exactly, whatever the rank: only deviations from it are approximated.
        kept = up.weight.double() @ (down.weight.double() @ self.mean)
        bias = self.bias + self.weight_mean - kept - thresholds
        return LowRankPredictor(down, up, bias.float().contiguous(), lookahead=self.lookahead)


def whitened_svd(
    w_in: Float[Tensor, "F D"],
    bias: Float[Tensor, " F"],
    moments: InputMoments,
    lookahead: Lookahead = Lookahead.SAME,
) -> Factors:
    """Factor the map from a view to the pre-activations so that every leading slice is the best of its rank.

    With y the view, x the MLP's own input, C = cov(y) = L L^T and B = cov(x, y) C^-1, the SVD of
    ``w_in @ B @ L`` minimises the expected squared error of the pre-activations over all maps of rank R
    (reduced-rank regression; Eckart-Young where y is x and B the identity). Computed in float64 from a D x D
    eigenproblem; costs O(F D^2 + D^3). Directions that the inputs never take are damped, not dropped.
    `lookahead` is what `moments` were taken of. Raises UsageError where one of them lacks the other's cross.
    """
    if (moments.cross is None) != (lookahead is Lookahead.SAME):
        raise UsageError(
            f"lookahead is {lookahead} and the moments {'lack' if moments.cross is None else 'hold'} a cross "
            "covariance; expected one for half-layer and next-layer, none for same-layer."
        )
    weight = w_in.double()
    ridge = 1e-6 * moments.covariance.diagonal().mean().clamp_min(1e-12)
    lower = torch.linalg.cholesky(
        moments.covariance + ridge * torch.eye(weight.shape[1], dtype=torch.float64)
    )
    if moments.cross is None:
        own_mean, spread = moments.mean, lower
    else:  # B L = cov(x, y) L^-T
        own_mean = moments.cross.mean
        spread = torch.linalg.solve_triangular(lower, moments.cross.covariance.T, upper=False).T
    seen = weight @ spread  # [F, D]
    _, right = torch.linalg.eigh(seen.T @ seen)
    right = right.flip(-1)  # eigh is ascending
    down = torch.linalg.solve_triangular(lower.T, right, upper=True).T  # right^T L^-1
    return Factors(down, seen @ right, weight @ own_mean, moments.mean, bias.double(), lookahead)
