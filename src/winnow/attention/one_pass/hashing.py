"""Hashing: the bucket and the sign of a position, computed and not looked up.   (floor 4 · attention)

With p = 2^31 - 1 a position i = hi * 2^31 + lo becomes x = (lo + c * hi) mod p, then

    bucket = ((a x + b) mod p) mod width           pairwise independent, up to width / p
    sign   = parity of a cubic of x mod p          four-wise independent, up to 1 / p

All products stay below 2^62, so int64 is exact, and positions may go up to 2^62. Two positions beyond 2^31
share an x with probability 1 / p.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.base.rng import keyed

PRIME = 2**31 - 1
LARGEST = 2**62


@final
@dataclass(frozen=True)
class Hashing:
    """The coefficients of all rows, drawn from (seed, level)."""

    coefficients: Int64[Tensor, "rows 7"]  # c, a, b, and the cubic

    @classmethod
    def drawn(cls, n_rows: int, seed: int, level: int, device: torch.device | None = None) -> "Hashing":
        """Return the hashing of `n_rows` rows that belongs to a seed and a level, the same on any device."""
        drawn = keyed(seed, level).integers(1, PRIME, (n_rows, 7))
        return cls(torch.from_numpy(drawn).to(device))

    def buckets(self, positions: Int64[Tensor, " N"], width: int) -> Int64[Tensor, "rows N"]:
        """Return each position's bucket in each row."""
        x = self._folded(positions)
        a, b = self.coefficients[:, 1:2], self.coefficients[:, 2:3]
        return (a * x + b) % PRIME % width

    def signs(self, positions: Int64[Tensor, " N"]) -> Int64[Tensor, "rows N"]:
        """Return each position's sign in each row, 1 or -1."""
        x = self._folded(positions)
        value = self.coefficients[:, 3:4]
        for i in range(4, 7):
            value = (value * x + self.coefficients[:, i : i + 1]) % PRIME
        return 1 - 2 * (value % 2)

    def _folded(self, positions: Tensor) -> Tensor:
        low, high = positions % 2**31, positions // 2**31
        return (low % PRIME + self.coefficients[:, :1] * (high % PRIME) % PRIME) % PRIME


def check_positions(positions: Int64[Tensor, " N"]) -> None:
    """Raise UsageError unless all positions are within 0 .. 2^62 - 1."""
    if len(positions) and not (int(positions.min()) >= 0 and int(positions.max()) < LARGEST):
        raise UsageError(
            f"positions are {int(positions.min())}..{int(positions.max())}; expected 0 <= position < 2**62."
        )
