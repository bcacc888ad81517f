"""Counts: what decoding selected, read and waited for, layer by layer.   (floor 5 · engine)

A step takes down what it selected and no more: its weights have thrown the interpreter out of the caches, and
working out what was read would cost as much as a kernel. That is done for some dozen steps at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from jaxtyping import Float64, Int64

from winnow.engine.cache import Backlog, KvCache
from winnow.engine.sparsity.predictor import HeadPredictor
from winnow.engine.sparsity.sparse_mlp import WinnowedMlp
from winnow.engine.weights import Weights
from winnow.kernels import Lists

NOTED_STEPS = 64  # that are worked out at once
FLOAT_BYTES = 4


@final
@dataclass
class DecodeCounts:
    """What was selected, read and waited for since `Decoder.start`, layer by layer.

    `seconds` covers a layer whole, attention included, and the predictor of the layer above where that reads
    this layer's input. Bytes are the weights, predictors, keys and values that the steps were asked to read;
    of a selected neuron that turned out not to fire the kernel reads half. `steps` counts tokens: a step of
    several sequences counts as many.
    """

    n_layers: int
    n_neurons: int
    n_heads: int  # kv heads, each left out with all heads that share it
    active: Int64[np.ndarray, " L"] = field(init=False)
    heads: Int64[np.ndarray, " L"] = field(init=False)
    n_bytes: Int64[np.ndarray, " L"] = field(init=False)
    seconds: Float64[np.ndarray, " L"] = field(init=False)
    head_bytes: int = 0  # of the map to logits
    steps: int = 0

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.active, self.heads, self.n_bytes = (np.zeros(self.n_layers, np.int64) for _ in range(3))
        self.seconds = np.zeros(self.n_layers)

    @property
    def mlp_density(self) -> float:
        """Share of neurons selected, over all layers and steps; 1 before the first step."""
        return self._share(self.active, self.n_neurons)

    @property
    def head_density(self) -> float:
        """Share of heads computed, over all layers and steps; 1 before the first step."""
        return self._share(self.heads, self.n_heads)

    @property
    def bytes_per_token(self) -> float:
        """Mean bytes read per token; sequences that step together share what they read."""
        return (int(self.n_bytes.sum()) + self.head_bytes) / max(self.steps, 1)

    def _share(self, selected: Int64[np.ndarray, " L"], of: int) -> float:
        return int(selected.sum()) / (of * self.n_layers * self.steps) if self.steps else 1.0


@final
class Meter:
    """Counts the steps of one decoding; what was read is worked out for many steps at once."""

    def __init__(
        self,
        weights: Weights,
        caches: Sequence[KvCache],
        backlogs: Sequence[Backlog],
        heads: Sequence[HeadPredictor | None],
        mlps: Sequence[WinnowedMlp],
    ) -> None:
        """Begin at nothing."""
        config = weights.config
        self._counts = DecodeCounts(config.n_layers, config.n_neurons, config.n_kv_heads)
        self._backlogs, self._mlps = backlogs, mlps
        self._notes = _Notes(config.n_layers, len(caches), len(backlogs[0].late))
        self._n_noted = 0
        self._head_bytes = weights.head.n_bytes
        self._windows = np.array([layer.window or np.iinfo(np.int64).max for layer in weights.layers])
        n_q, n_kv, _ = config.qkv_rows
        qkv = np.array([layer.qkv.n_bytes for layer in weights.layers])
        q = qkv * n_q // (n_q + 2 * n_kv)
        self._kv_bytes = qkv - q
        self._bytes_by_head = q + [layer.out.n_bytes for layer in weights.layers]
        predictors = [0 if predictor is None else predictor.n_bytes for predictor in heads]
        self._fixed = np.array(predictors) + [mlp.n_bytes(0) for mlp in mlps]
        self._record_bytes = np.array([mlp.n_bytes(1) - mlp.n_bytes(0) for mlp in mlps])
        self._position_bytes = caches[0].blocks[0].position_bytes
        self._input_bytes = FLOAT_BYTES * config.width

    def add(
        self,
        positions: Int64[np.ndarray, " B"],
        heads: Sequence[Lists],
        n_heads: Int64[np.ndarray, "L B"],
        n_active: Int64[np.ndarray, "L B"],
        times: Float64[np.ndarray, "L_plus_1 1"],
    ) -> None:
        """Count a step whose tokens stood at `positions` and whose layers began at `times`."""
        notes, step = self._notes, self._n_noted
        notes.positions[step] = positions
        notes.n_heads[step] = n_heads
        notes.n_active[step] = n_active
        notes.times[step] = times[:, 0]
        if len(positions) > 1:  # what several list is read once
            notes.read[step] = [mlp.n_read for mlp in self._mlps]
            notes.computed[step] = [_n_listed(each) for each in heads]
        for row, backlog in enumerate(self._backlogs):
            notes.late[step, row] = backlog.read
        self._n_noted += 1
        if self._n_noted == NOTED_STEPS:
            self._work_out()

    def counts(self) -> DecodeCounts:
        """Return the counts of all steps so far, which later steps add to."""
        self._work_out()
        return self._counts

    def _work_out(self) -> None:
        counts, notes, n = self._counts, self._notes, self._n_noted
        n_heads, n_active, late = notes.n_heads[:n], notes.n_active[:n], notes.late[:n]
        read, computed = n_active[..., 0], n_heads[..., 0]
        if len(self._backlogs) > 1:
            read, computed = notes.read[:n], notes.computed[:n]
        kv_bytes = np.tile(self._kv_bytes, (n, 1))
        if late.size:
            layers = self._backlogs[0].late
            computed_late = self._kv_bytes[layers] * late[..., 0] // counts.n_heads
            kv_bytes[:, layers] = (computed_late + late[..., 1] * self._input_bytes).sum(1)
        held = np.minimum(notes.positions[:n, None] + 1, self._windows[:, None])
        cached = (held * n_heads).sum(2)
        by_head = self._bytes_by_head * computed // counts.n_heads
        n_bytes = self._fixed + kv_bytes + cached * self._position_bytes + read * self._record_bytes + by_head
        counts.n_bytes += n_bytes.sum(0)
        counts.heads += n_heads.sum((0, 2))
        counts.active += n_active.sum((0, 2))
        counts.seconds += np.diff(notes.times[:n]).sum(0)
        counts.head_bytes += n * self._head_bytes
        counts.steps += n * len(self._backlogs)
        self._n_noted = 0


class _Notes:
    """What some steps have selected, by step."""

    def __init__(self, n_layers: int, batch: int, n_late: int) -> None:
        self.positions = np.zeros((NOTED_STEPS, batch), np.int64)
        self.n_heads = np.zeros((NOTED_STEPS, n_layers, batch), np.int64)
        self.n_active = np.zeros((NOTED_STEPS, n_layers, batch), np.int64)
        self.times = np.zeros((NOTED_STEPS, n_layers + 1))
        self.read = np.zeros((NOTED_STEPS, n_layers), np.int64)  # neurons, where several sequences list them
        self.computed = np.zeros((NOTED_STEPS, n_layers), np.int64)  # heads, likewise
        self.late = np.zeros((NOTED_STEPS, batch, n_late, 2), np.int64)  # heads and inputs, as Backlog.read


def _n_listed(lists: Lists) -> int:
    return len(np.unique(np.concatenate([row[:n] for row, n in zip(*lists, strict=True)])))
