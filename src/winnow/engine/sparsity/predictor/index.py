"""Index: neurons by the signs of their projections.   (floor 5 · engine)"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int32, Int64
from torch import Tensor

from winnow.engine.model import MlpInputs
from winnow.engine.sparsity.predictor.lookahead import Lookahead
from winnow.engine.sparsity.predictor.parts import matrix, stored, vector
from winnow.engine.weights import MlpWeights
from winnow.kernels import Calls, Cells, Matrix, NeuronRecords, QuantisedMatrix

WORD = 64  # signs


@final
@dataclass(frozen=True)
class IndexPredictor:
    """The signs of each neuron's projections, to be held against those of an input's.

    Two vectors at an angle a differ in a share a / pi of the signs of random projections. With p the input's
    projections and |p| their root mean square, the score ``sizes * |p| * cos(pi * share) + bias`` estimates
    pre-activations. Reads D bytes per sign for the projection, and an eighth of a byte per sign and neuron.
    """

    projection: Matrix | QuantisedMatrix  # [n_signs, D]
    offset: Float[Tensor, " _"]  # minus the projections of the mean input
    signs: Int64[Tensor, "F words"]  # sign t in bit t % 64 of word t // 64, 1 for +1
    sizes: Float[Tensor, " _"]  # F, as the plan's check of shapes says, and so is `bias`
    bias: Float[Tensor, " _"]  # the layer's own bias, the mean's share, minus each neuron's threshold
    kind: ClassVar[Literal["index"]] = "index"
    lookahead: Lookahead = Lookahead.SAME

    @property
    def n_signs(self) -> int:
        """How many signs stand for a neuron."""
        return WORD * self.signs.shape[1]

    @property
    def n_bytes(self) -> int:
        """Bytes of the predictor itself, all read per token."""
        floats = len(self.offset) + self.n_signs + 1 + len(self.sizes) + len(self.bias)
        return self.projection.n_bytes + 8 * self.signs.numel() + 4 * floats

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of `projection`, `offset`, `signs`, `sizes` and `bias`."""
        vectors = (tuple(each.shape) for each in (self.offset, self.signs, self.sizes, self.bias))
        return (self.projection.shape, *vectors)

    def shapes_for(self, width: int, n_neurons: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes that a model of these sizes needs with so many signs."""
        n, words = self.n_signs, self.signs.shape[1]
        return (n, width), (n,), (n_neurons, words), (n_neurons,), (n_neurons,)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it, by name."""
        vectors = {"offset": self.offset, "signs": self.signs, "sizes": self.sizes, "bias": self.bias}
        return {**stored("projection", self.projection), **vectors}

    @classmethod
    def of_tensors(cls, found: Mapping[str, Tensor], lookahead: Lookahead) -> "IndexPredictor":
        """Return the predictor that has these `tensors`; raises as `parts` does."""
        signs = found["signs"]
        if signs.dtype != torch.int64 or signs.ndim != 2 or signs.shape[1] == 0:
            raise ValueError(
                f"signs are {signs.dtype} of shape {tuple(signs.shape)}, expected int64 [F, words]."
            )
        offset, sizes, bias = (vector(found[name]) for name in ("offset", "sizes", "bias"))
        return cls(matrix(found, "projection"), offset, signs.contiguous(), sizes, bias, lookahead)

    def lowered(self, by: float | int) -> "IndexPredictor":
        """Return it with thresholds lower `by` standard deviations of each neuron's score, about `sizes`."""
        return replace(self, bias=self.bias + by * self.sizes)

    def scores(self, view: Float[Tensor, "T D"]) -> Float[Tensor, "T F"]:
        """Return the scores of rows of the view, as the kernel computes them.

        The same up to signs of projections that are within their rounding of 0.
        """
        projected = view @ self.projection.weight.float().T + self.offset
        length = projected.double().square().mean(-1, keepdim=True).sqrt().float()
        agreeing_less_differing = (2 * (projected > 0).float() - 1) @ self._unpacked().T
        differing = ((self.n_signs - agreeing_less_differing) / 2).long()
        return self.sizes * length * self._cosines[differing] + self.bias

    def selected(self, layer: MlpWeights, inputs: MlpInputs) -> Bool[Tensor, "T F"]:
        """Say for each row which neurons are computed; `layer` is for predictors that read its weights."""
        return self.scores(self.lookahead.view(inputs)) > 0

    def apply(
        self, calls: Calls, view: Float32[np.ndarray, "B D"], indices: Int32[np.ndarray, "B F"], count: Cells
    ) -> None:
        """Write the neurons selected for rows of the view into `indices`, ascending, and how many."""
        projected = np.empty((len(view), self.n_signs), np.float32)
        calls.linear(view, self.projection, self.offset.numpy(), projected)
        calls.sign_set(projected, *self._operands, indices, count)

    def bytes_read(self, records: NeuronRecords, n_active: float | int) -> float | int:
        """Return the bytes that an MLP reads per token when `n_active` neurons are selected."""
        return self.n_bytes + n_active * records.record_bytes

    def _unpacked(self) -> Float32[Tensor, "F n_signs"]:
        """The signs as +1 and -1, made anew at each call: they take 32 times their room."""
        bits = (self.signs[:, :, None] >> torch.arange(WORD)) & 1
        return (2 * bits - 1).float().flatten(1)

    @cached_property
    def _cosines(self) -> Float32[Tensor, " _"]:
        """Of the angle at which so many signs differ."""
        return torch.cos(torch.arange(self.n_signs + 1).double() * (math.pi / self.n_signs)).float()

    @cached_property
    def _operands(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        words = self.signs.numpy().view(np.uint64)
        return words, self._cosines.numpy(), self.sizes.numpy(), self.bias.numpy()
