"""Rotation: keys that carry their position as an angle, moved as a whole.   (floor 4 · attention)

Rotary keys meet a query only through the difference of their angles. So a set of keys, or any of its linear
moments, is moved by D positions by turning it by D; turning the query back by D does the same and costs less.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.base.errors import UsageError


@final
@dataclass(frozen=True)
class Rotation:
    """Rotary positions: the angle per position of each pair (i, i + E/2) of a head's first coordinates."""

    frequencies: tuple[float, ...]

    @classmethod
    def of(cls, theta: float, width: int) -> "Rotation":
        """Return the usual frequencies, theta^(-2i/width).

        Raises UsageError for an odd or empty width and a theta that is not above 0.
        """
        if width < 2 or width % 2 or not theta > 0:
            raise UsageError(
                f"A rotation got theta={theta}, width={width}; expected theta > 0 and an even width >= 2."
            )
        return cls(tuple(theta ** (-2 * i / width) for i in range(width // 2)))

    def turned(self, x: Float[Tensor, "... T E"], by: Int64[Tensor, " T"]) -> Float[Tensor, "... T E"]:
        """Return `x`, each token moved by `by` positions (back where negative).

        Angles are formed in float64: at a million positions float32 would be off by a tenth of a radian.
        """
        angles = by.double()[:, None] * torch.tensor(self.frequencies, dtype=torch.float64).to(x.device)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        half = len(self.frequencies)
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)
