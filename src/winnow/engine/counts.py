"""Counts: what decoding selected, read and waited for, layer by layer.   (floor 5 · engine)

A step is counted by a dozen operations on all layers at once: counting costs what a small kernel does.
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
    """Counts the steps of one decoding; what does not change from step to step is worked out once."""

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
        self.counts = DecodeCounts(config.n_layers, config.n_neurons, config.n_kv_heads)
        self._backlogs, self._mlps = backlogs, mlps
        self._late = [index for index in range(config.n_layers) if index in backlogs[0]]
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

    def add(
        self,
        positions: Sequence[int],
        heads: Sequence[Lists],
        n_heads: Int64[np.ndarray, "L B"],
        n_active: Int64[np.ndarray, "L B"],
        times: Float64[np.ndarray, " L_plus_1"],
    ) -> None:
        """Count a step whose tokens stood at `positions` and whose layers began at `times`."""
        counts = self.counts
        read, computed = n_active[:, 0], n_heads[:, 0]
        if len(positions) > 1:  # what several list is read once
            read = np.array([mlp.n_read for mlp in self._mlps])
            computed = np.array([_n_listed(each) for each in heads])
        kv_bytes = self._kv_bytes.copy()
        for index in self._late:
            dense = int(kv_bytes[index])
            kv_bytes[index] = sum(backlog.n_bytes(index, dense) for backlog in self._backlogs)
        cached = sum(
            np.minimum(position + 1, self._windows) * n_heads[:, row]
            for row, position in enumerate(positions)
        )
        counts.n_bytes += self._fixed + kv_bytes + cached * self._position_bytes
        counts.n_bytes += read * self._record_bytes + self._bytes_by_head * computed // counts.n_heads
        counts.heads += n_heads.sum(1)
        counts.active += n_active.sum(1)
        counts.seconds += np.diff(times)
        counts.head_bytes += self._head_bytes
        counts.steps += len(positions)


def _n_listed(lists: Lists) -> int:
    return len(np.unique(np.concatenate([row[:n] for row, n in zip(*lists, strict=True)])))
