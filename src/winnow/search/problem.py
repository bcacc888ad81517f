"""Problem: sets of +-1 vectors, the distance that is heavy, what the data are like.   (floor 3 · search)"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from scipy.stats import beta, binom

from winnow.base.errors import UsageError
from winnow.base.rng import keyed
from winnow.kernels import Cpu
from winnow.search.signs import Signs

# What random numbers are drawn for: each purpose has counters of its own.
CANARIES, SKETCH, TABLES, GROUPS, PROJECTION, SAMPLE = (purpose << 40 for purpose in range(1, 7))
SAMPLED_PAIRS = 20_000
PLENTY = 1_000_000  # random hits that an exact search refuses to list unasked


@final
@dataclass(frozen=True)
class Problem:
    """Find the pairs that differ in at most `limit` bits: of a and b, or i < j within a where b is None."""

    a: Signs
    b: Signs | None
    limit: int
    recall: float
    seed: int
    cpu: Cpu
    most: int
    watch: Callable[[int, int], None]

    @property
    def columns(self) -> Signs:
        """The second set: b, or a itself."""
        return self.a if self.b is None else self.b

    @property
    def width(self) -> int:
        """The number of coordinates."""
        return self.a.width

    @property
    def n_pairs(self) -> int:
        """How many pairs there are; Python's integers do not overflow."""
        n = len(self.a)
        return n * (n - 1) // 2 if self.b is None else n * len(self.b)

    @property
    def n_rows(self) -> int:
        """Rows of both sets together, or of the one."""
        return len(self.a) + (0 if self.b is None else len(self.b))

    @cached_property
    def background(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances of pairs drawn at random, each once, and the share of each: what the data are like."""
        draws, columns = keyed(self.seed, SAMPLE), self.columns
        i = draws.integers(0, len(self.a), SAMPLED_PAIRS).astype(np.int32)
        j = draws.integers(0, len(columns), SAMPLED_PAIRS).astype(np.int32)
        if self.b is None and len(self.a) > 1:
            j = np.where(i == j, (i + 1) % len(self.a), j).astype(np.int32)
        values, counts = np.unique(self.distances(i, j), return_counts=True)
        return values, counts / SAMPLED_PAIRS

    def distances(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Return in how many bits each listed pair differs."""
        out = np.empty(len(i), np.int32)
        self.cpu.bit_distances(self.a.words, self.columns.words, i, j, out)
        return out

    def heavy_codes(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Return the listed pairs that are heavy, each as one number: i times the columns, plus j."""
        near = self.distances(i, j) <= self.limit
        return i[near].astype(np.int64) * len(self.columns) + j[near]

    def listed(self, codes: np.ndarray) -> np.ndarray:
        """Return (i, j, distance) of coded pairs, ascending, each once."""
        i, j = (part.astype(np.int32) for part in np.divmod(np.unique(codes), len(self.columns)))
        return np.column_stack([i, j, self.distances(i, j)]).astype(np.int64)

    def check_found(self, n_found: int) -> None:
        """Refuse to go on where more is found than was asked for."""
        if n_found > self.most:
            raise UsageError(
                f"more than {self.most} pairs are heavy: raise rho, or max_pairs if you want them all."
            )


def product_limit(rho: float, width: int) -> int:
    """Return the most bits in which a pair of product at least ``rho * width`` differs."""
    return math.floor((1 - rho) * width / 2 + 1e-9)


def random_hits(rho: float, width: int, n_pairs: int, *, is_real: bool) -> float:
    """Return how many of `n_pairs` random pairs reach the threshold: coin flips, or random directions."""
    if is_real:
        return n_pairs * 0.5 * float(beta.sf(rho * rho, 0.5, (width - 1) / 2)) if width > 1 else n_pairs / 2
    return n_pairs * float(binom.cdf(product_limit(rho, width), width, 0.5))


def check_well_posed(rho: float, width: int, n_rows: int, hits: float, *, is_exact: bool) -> None:
    """Refuse a threshold that random pairs pass.

    Of n random vectors some pair passes unless ``rho * sqrt(width) > sqrt(4 ln n)``. An exact method only
    refuses where random hits would flood the answer: it lists what there is, however it came about.
    """
    enough = math.sqrt(4 * math.log(max(n_rows, 2)))
    if hits > PLENTY if is_exact else rho * math.sqrt(width) < enough:
        raise UsageError(
            f"rho {rho:g} at width {width} is what chance gives: about {hits:.3g} random pairs of {n_rows} "
            f"rows pass; expected rho of at least {enough / math.sqrt(width):.3f}, or max_pairs to list them."
        )
