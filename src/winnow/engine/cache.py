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
        if not 1 <= capacity <= config.n_positions:
            raise UsageError(
                f"a cache of {capacity} positions was asked for, expected 1 to {config.n_positions}, "
                "the positions this model has. Shorten the prompt or ask for fewer tokens."
            )
        self.capacity = capacity
        self.length = 0
        self.blocks = tuple(
            KvBlock(config.n_kv_heads, capacity, config.head_width, dtype) for _ in range(config.n_layers)
        )

    @property
    def n_bytes(self) -> int:
        """Memory held by keys and values."""
        return sum(block.keys.nbytes + block.values.nbytes for block in self.blocks)
