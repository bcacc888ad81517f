"""Low rank: two thin matrices that stand for a layer's input weights.   (floor 5 · engine)"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, final

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32
from torch import Tensor

from winnow.engine.model import MlpInputs
from winnow.engine.sparsity.predictor.lookahead import Lookahead
from winnow.engine.sparsity.predictor.parts import matrix, stored, vector
from winnow.engine.weights import MlpWeights
from winnow.kernels import Calls, Cells, Matrix, NeuronRecords, QuantisedMatrix


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
        return self.down.shape[0]

    @property
    def n_bytes(self) -> int:
        """Bytes of the predictor itself, all read per token."""
        return self.down.n_bytes + self.up.n_bytes + 4 * len(self.bias)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of `down`, `up` and `bias`."""
        return self.down.shape, self.up.shape, tuple(self.bias.shape)

    def shapes_for(self, width: int, n_neurons: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes that a model of these sizes needs at this rank."""
        return (self.rank, width), (n_neurons, self.rank), (n_neurons,)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it, by name."""
        return {**stored("down", self.down), **stored("up", self.up), "bias": self.bias}

    @classmethod
    def of_tensors(
        cls, found: Mapping[str, Tensor], kind: Literal["svd", "low-rank"], lookahead: Lookahead
    ) -> "LowRankPredictor":
        """Return the predictor that has these `tensors`; raises as `parts` does."""
        parts = matrix(found, "down"), matrix(found, "up"), vector(found["bias"])
        return cls(*parts, kind, lookahead)

    def lowered(self, by: float | int) -> "LowRankPredictor":
        """Return it with thresholds lower `by` standard deviations of each neuron's score.

        Those are the norms of the rows of ``up``, as `whitened_svd` makes the predictor's inner coordinates
        uncorrelated and of variance 1.
        """
        return replace(self, bias=self.bias + by * self.up.weight.float().norm(dim=1))

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
