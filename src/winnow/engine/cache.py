"""Cache: the keys and values of the positions computed so far.   (floor 5 · engine)"""

from typing import final

import torch

from winnow.base.errors import UsageError
from winnow.engine.config import ModelConfig
from winnow.kernels import KvBlock


@final
class KvCache:
    """One block of keys and values per layer, filled up to `length` positions.

    Holds ``2 * L * K * capacity * E`` numbers of `dtype`, allocated at once.
    """

    def __init__(self, config: ModelConfig, capacity: int, dtype: torch.dtype) -> None:
        """Allocate room for `capacity` positions; raises UsageError beyond the model's positions."""
        self._most = config.n_positions
        self._check(capacity)
        self.capacity = capacity
        self.length = 0
        self.blocks = tuple(
            KvBlock(config.n_kv_heads, capacity, config.head_width, dtype) for _ in range(config.n_layers)
        )

    @property
    def n_bytes(self) -> int:
        """Memory held by keys and values."""
        return sum(block.keys.nbytes + block.values.nbytes for block in self.blocks)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` positions and keep what is held.

        For a moment holds one layer twice. Raises UsageError beyond the model's positions or below `length`.
        """
        self._check(capacity)
        if capacity < self.length:
            raise UsageError(f"a cache of {self.length} positions cannot shrink to {capacity}.")
        self.blocks = tuple(_moved(block, capacity, self.length) for block in self.blocks)
        self.capacity = capacity

    def _check(self, capacity: int) -> None:
        if not 1 <= capacity <= self._most:
            raise UsageError(
                f"a cache of {capacity} positions was asked for, expected 1 to {self._most}, "
                "the positions this model has. Shorten the prompt or ask for fewer tokens."
            )


def _moved(block: KvBlock, capacity: int, length: int) -> KvBlock:
    larger = KvBlock(block.n_kv_heads, capacity, block.head_width, block.dtype)
    larger.keys[:, :length] = block.keys[:, :length]
    larger.values[:, :length] = block.values[:, :length]
    return larger
