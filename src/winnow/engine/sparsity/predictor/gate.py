"""Gate: the first half of a gated MLP decides on the rest.   (floor 5 · engine)"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, final

import numpy as np
from jaxtyping import Bool, Float32, Int32
from torch import Tensor

from winnow.engine.model import MlpInputs
from winnow.engine.sparsity.predictor.lookahead import Lookahead
from winnow.engine.sparsity.predictor.parts import vector
from winnow.engine.weights import MlpWeights, product
from winnow.kernels import Calls, Cells, NeuronRecords


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

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it, by name."""
        return {"thresholds": self.thresholds}

    @classmethod
    def of_tensors(cls, found: Mapping[str, Tensor]) -> "GatePredictor":
        """Return the predictor that has these `tensors`; raises as `parts` does."""
        return cls(vector(found["thresholds"]))

    def lowered(self, by: float | int) -> "GatePredictor":
        """Return it with its thresholds, which are magnitudes, divided by e to the `by`."""
        return GatePredictor(self.thresholds * math.exp(-by))

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
