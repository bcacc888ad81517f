"""Reals: real vectors, their signs under random projections, their cosines.   (floor 3 · search)

    P(sign(g x) != sign(g y)) = angle(x, y) / pi        for one Gaussian g

so that a pair of cosine rho differs in Binomial(D, arccos(rho) / pi) of D bits. Bits name candidates, the
true cosine decides.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.stats import binom

from winnow.base.errors import UsageError
from winnow.kernels.bit_products.reference import pack_signs_reference
from winnow.search.signs import TILE_BYTES, Signs, check_matrix

MOST_BITS = 4096
ROUNDING = 1e-12  # a cosine this little below the threshold passes


@final
@dataclass(frozen=True)
class Reals:
    """Rows of finite floats, possibly in a file; a row of zeros has cosine 0 with everything."""

    array: np.ndarray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.array)

    @property
    def width(self) -> int:
        """The number of coordinates."""
        return self.array.shape[1]

    @property
    def step(self) -> int:
        """How many rows are read at a time."""
        return max(TILE_BYTES // (8 * self.width), 1)

    def unit(self, rows: slice | np.ndarray) -> Float64[np.ndarray, "N width"]:
        """Return rows scaled to length 1, in float64; by their largest value first, against overflow."""
        x = np.asarray(self.array[rows], dtype=np.float64)
        largest = np.abs(x).max(axis=1, keepdims=True)
        x = np.divide(x, largest, out=np.zeros_like(x), where=largest > 0)
        length = np.sqrt((x * x).sum(axis=1, keepdims=True))
        return np.divide(x, length, out=x, where=length > 0)

    @property
    def is_narrow(self) -> bool:
        """Whether products of its values and their sums keep within float64's range, whatever they are."""
        return self.array.dtype != np.float64

    def signs(self, projection: Float32[np.ndarray, "width bits"]) -> Signs:
        """Return on which side of each random plane the rows lie."""
        pieces = (slice(at, at + self.step) for at in range(0, len(self), self.step))
        parts = [pack_signs_reference(self._scaled(piece) @ projection > 0) for piece in pieces]
        return Signs(np.concatenate(parts), projection.shape[1])

    def _scaled(self, rows: slice) -> Float32[np.ndarray, "N width"]:
        """Return rows of any length: it changes no sign, so only what float32 might not hold is scaled."""
        x = self.array[rows]
        largest = np.abs(x).max(axis=1).astype(np.float64)
        is_plain = self.is_narrow and ((largest == 0) | ((largest > 1e-15) & (largest < 1e30))).all()
        return (x if is_plain else self.unit(rows)).astype(np.float32, copy=False)


def read_reals(name: str, array: np.ndarray) -> Reals:
    """Return real vectors, checked in tiles; float16, float32 and float64 are taken."""
    check_matrix(name, array)
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise UsageError(
            f"{name} is {array.dtype}, expected bool, int8, uint64 words of bits, or float16, 32, 64."
        )
    reals = Reals(array)
    for at in range(0, len(array), reals.step):
        finite = np.isfinite(array[at : at + reals.step]).all(axis=1)
        if not finite.all():
            row = at + int(np.argmin(finite))
            raise UsageError(f"row {row} of {name} is not finite, expected numbers: drop NaN and infinity.")
    return reals


def cosines(
    a: Reals, b: Reals, i: Int64[np.ndarray, " pairs"], j: Int64[np.ndarray, " pairs"]
) -> Float64[np.ndarray, " pairs"]:
    """Return the cosine of each listed pair, in float64."""
    out, step = np.empty(len(i)), min(a.step, b.step)
    for at in range(0, len(i), step):
        part = slice(at, at + step)
        if a.is_narrow and b.is_narrow:
            x, y = (each.array[rows[part]].astype(np.float64) for each, rows in ((a, i), (b, j)))
            size = np.sqrt(np.einsum("pd,pd->p", x, x) * np.einsum("pd,pd->p", y, y))
            product = np.einsum("pd,pd->p", x, y)
            out[part] = np.divide(product, size, out=np.zeros_like(size), where=size > 0)
        else:
            out[part] = (a.unit(i[part]) * b.unit(j[part])).sum(axis=1)
    return out


def differing_share(rho: float) -> float:
    """Return the probability that one bit of a pair of cosine `rho` differs."""
    return math.acos(rho) / math.pi


def bits_for(rho: float, recall: float, n_pairs: int, n_rows: int) -> tuple[int, int] | None:
    """Return how many bits, and the distance that a share `recall` of the pairs of cosine `rho` keeps to.

    The fewest, a multiple of 64, with which pairs of no correlation add about four candidates per row; None
    where MOST_BITS are too few.
    """
    for bits in range(64, MOST_BITS + 1, 64):
        limit = int(binom.ppf(recall, bits, differing_share(rho)))
        if n_pairs * binom.cdf(limit, bits, 0.5) <= 4 * n_rows + 1000:
            return bits, limit
    return None
