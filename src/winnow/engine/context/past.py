"""Past: one streaming state per layer, and where a token stands in it.   (floor 5 · engine)"""

from typing import final

import torch
from jaxtyping import Float32
from torch import Tensor

from winnow.attention.streaming import Streaming, StreamingState
from winnow.engine.config import ModelConfig
from winnow.engine.families.rope import frequencies

Angles = tuple[Float32[Tensor, "T E_half"], Float32[Tensor, "T E_half"]]


@final
class Past:
    """What one sequence remembers: a state per layer, float32, all of its memory taken at once."""

    def __init__(self, config: ModelConfig, kind: Streaming) -> None:
        """Remember nothing yet."""
        width = config.head_width
        self.states: tuple[StreamingState, ...] = tuple(
            kind.start(1, config.n_kv_heads, width, width) for _ in range(config.n_layers)
        )

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self.states[0].seen

    @property
    def n_bytes(self) -> int:
        """Memory held: the same from the first token to the last."""
        return sum(state.n_bytes for state in self.states)


def learned_position(config: ModelConfig, position: int) -> int:
    """Return the learned position of the token at `position`: beyond the last one, the last."""
    return min(position, config.n_positions - 1)


def angles_of(config: ModelConfig, start: int, count: int) -> Angles | None:
    """Return cosine and sine of the positions from `start` on, None without rotary positions.

    As `rotary_table`, but formed in float64: a million positions on, float32 is off by a tenth of a radian.
    """
    rope = config.rope
    if rope is None:
        return None
    positions = torch.arange(start, start + count, dtype=torch.float64)
    angles = positions[:, None] * frequencies(rope, config.head_width).double()
    return (angles.cos() * rope.scale).float(), (angles.sin() * rope.scale).float()
