"""Cache: keys and values of the positions computed so far, and what is owed to it.   (floor 5 · engine)

    dense   a step computes the keys and values of every head
    lazy    of the heads it selects, and of those that have waited longest; of the others it keeps the
            inputs, from which a head gets all it lacks as soon as it is selected

Both are exact: a head attends to the same bits, whenever they were computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64

from winnow.base.errors import UsageError
from winnow.engine.config import ModelConfig
from winnow.engine.weights import Layer, Weights
from winnow.kernels import Calls, Cells, Cpu, KvBlock, LazyKv, Listed

Vector = Float32[np.ndarray, " _"]


@final
@dataclass(frozen=True)
class KvPolicy:
    """When keys and values are computed: a head left out may lack those of `window` positions.

    With a window of 1, that of the step itself, no head is ever left out: that is dense. Lazy keeps
    ``L * window * D`` float32 inputs, and as much again in the form that products read; a step computes at
    most K / window heads, rounded up, beside those that it selects. Raises UsageError for a window outside
    1..64.
    """

    window: int = 1

    def __post_init__(self) -> None:
        """Refuse windows that the kernels do not have."""
        if not 1 <= self.window <= LazyKv.MOST_WINDOW:
            raise UsageError(f"window is {self.window}, expected 1..{LazyKv.MOST_WINDOW} positions.")

    @property
    def is_lazy(self) -> bool:
        """Whether heads may lack something between steps."""
        return self.window > 1


KV_POLICIES = {"dense": KvPolicy(), "lazy": KvPolicy(8)}


@runtime_checkable
class Debtor(Protocol):
    """Who has left keys and values out of a cache."""

    def complete(self) -> None:
        """Compute them."""
        ...


@final
class KvCache:
    """One block of keys and values per layer, filled up to `length` positions.

    Holds ``2 * L * K * capacity * E`` numbers of `dtype`, and of int8 a scale for every E, allocated at once.
    Whoever asks for the blocks finds them whole: what a decoding has left out is computed before they are
    handed out.
    """

    def __init__(self, config: ModelConfig, capacity: int, dtype: torch.dtype) -> None:
        """Allocate room for `capacity` positions; raises UsageError beyond the model's positions."""
        self._most = config.n_positions
        self._check(capacity)
        self.capacity = capacity
        self.length = 0
        self._debtor: Debtor | None = None
        self._blocks = tuple(
            KvBlock(config.n_kv_heads, capacity, config.head_width, dtype) for _ in range(config.n_layers)
        )

    @property
    def blocks(self) -> tuple[KvBlock, ...]:
        """Keys and values of every layer, completed first; not for a step, which would leave nothing out."""
        self.complete()
        return self._blocks

    @property
    def n_bytes(self) -> int:
        """Memory held by keys and values."""
        return sum(block.n_bytes for block in self._blocks)

    def complete(self) -> None:
        """Let whoever has left something out compute it; nothing is owed afterwards."""
        if self._debtor is not None:
            self._debtor.complete()
            self._debtor = None

    def owe(self, debtor: Debtor) -> None:
        """Remember who will complete the cache; it is complete now."""
        self.complete()
        self._debtor = debtor

    def is_owed_by(self, debtor: Debtor) -> bool:
        """Whether `debtor` is still the one who will complete the cache."""
        return self._debtor is debtor

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` positions and keep what is held.

        For a moment holds one layer twice. Raises UsageError beyond the model's positions or below `length`.
        """
        self._check(capacity)
        if capacity < self.length:
            raise UsageError(f"a cache of {self.length} positions cannot shrink to {capacity}.")
        self._blocks = tuple(_moved(block, capacity, self.length) for block in self.blocks)
        self.capacity = capacity

    def _check(self, capacity: int) -> None:
        if not 1 <= capacity <= self._most:
            raise UsageError(
                f"a cache of {capacity} positions was asked for, expected 1 to {self._most}, "
                "the positions this model has. Shorten the prompt or ask for fewer tokens."
            )


def _moved(block: KvBlock, capacity: int, length: int) -> KvBlock:
    larger = KvBlock(block.n_kv_heads, capacity, block.head_width, block.dtype)
    larger.take(block, length)
    return larger


@final
class Backlog:
    """What the steps of one decoding leave out of one cache, and the inputs it will be computed from.

    A step is `begin`, the recorded calls, `end`. One that was broken off, a position that does not follow the
    last, or a cache that someone has completed meanwhile: `begin` then starts anew, from a whole cache.
    """

    def __init__(
        self, weights: Weights, is_left_out: Sequence[bool], cache: KvCache, policy: KvPolicy, cpu: Cpu
    ) -> None:
        """Owe nothing yet; `is_left_out` says of which layers heads may be left out."""
        config = weights.config
        n_q, n_kv, _ = config.qkv_rows
        shape = policy.window, config.head_width // 2
        self._cpu, self._cache = cpu, cache
        self._angles = None
        if config.rope is not None:
            self._angles = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.late = [index for index, each in enumerate(is_left_out) if policy.is_lazy and each]  # layers
        self.read = np.zeros((len(self.late), 2), np.int64)  # by late layer: heads computed, inputs read
        blocks = cache.blocks
        self._layers = {
            index: _Late(
                weights.layers[index], (n_q, n_q + 2 * n_kv), blocks[index], self._angles, policy.window, read
            )
            for index, read in zip(self.late, self.read, strict=True)
        }
        self._every = np.arange(config.n_kv_heads, dtype=np.int32), np.full(1, config.n_kv_heads)
        self._end = 0
        self._is_under_way = False

    def __contains__(self, index: int) -> bool:
        """Whether layer `index` is computed late."""
        return index in self._layers

    def record(self, calls: Calls, index: int, x: Vector, position: Cells, selected: Listed) -> None:
        """Record for layer `index`, which reads `x`, what the selected heads lack and those that waited."""
        layer = self._layers[index]
        calls.due_heads(layer.lazy, position, selected, layer.due, layer.most)
        calls.missing_kv(x, layer.lazy, position, layer.due)

    def begin(self, position: int, cos: Vector, sin: Vector) -> None:
        """Make ready for the step at `position`, whose angles are given."""
        if not self._layers:
            self._cache.complete()  # of what another decoding owes
            return
        if self._is_under_way or position != self._end or not self._cache.is_owed_by(self):
            self._cache.owe(self)
            self._end = position
            for layer in self._layers.values():
                layer.lazy.filled[:] = position
        self._is_under_way = True
        if self._angles is not None:
            window = len(self._angles[0])
            self._angles[0][position % window], self._angles[1][position % window] = cos, sin

    def end(self, position: int) -> None:
        """Take note that the step at `position` is done."""
        self._end = position + 1
        self._is_under_way = False

    def complete(self) -> None:
        """Compute all that every head lacks."""
        last = self._end - 1
        for layer in self._layers.values() if last >= 0 else ():
            lazy = layer.lazy
            self._cpu.missing_kv(lazy.inputs[last % lazy.window], lazy, np.array([last]), self._every)


class _Late:
    """One layer whose heads may lack keys and values, and the heads that are due in a step."""

    def __init__(
        self,
        layer: Layer,
        rows: tuple[int, int],
        block: KvBlock,
        angles: tuple[Float32[np.ndarray, "window half"], Float32[np.ndarray, "window half"]] | None,
        window: int,
        read: Int64[np.ndarray, "2"],
    ) -> None:
        first, end = rows
        bias = None if layer.qkv.bias is None else layer.qkv.bias.numpy()[first:end]
        norm = None if layer.k_norm is None else (layer.k_norm.weight.numpy(), layer.k_norm.eps)
        self.lazy = LazyKv(block, layer.qkv.matrix.part(first, end), bias, norm, angles, window)
        self.due: Listed = (np.zeros(block.n_kv_heads, np.int32), read[:1])
        self.most: Cells = read[1:]
