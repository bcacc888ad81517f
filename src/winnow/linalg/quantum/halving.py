"""Halving: leverage scores of many rows, from a sample of half of them.   (floor 2 · linalg)

The rows are shuffled; the last level is read, every level above is sampled by scores against the sample
below:

    score_i = a_i^T (B^T B + ridge)^-1 a_i     B the weighted sample of the first half (Cohen et al. 2015)
    p_i     = min(1, rate * score_i)           1 where a_i leaves the row space of B

Half of the rows bound the scores of all from above, and the bounds sum to about 2 D. Row i with p_i = 1 is
found by `find_all` and kept with weight 1; the others are measured by `many_copies` and weigh ``total /
(copies * p_i)``. A level of n rows of which k are kept costs about ``1.4 sqrt(n k)`` loads, all levels
together 3.4 times the top one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from winnow.base.rng import keyed
from winnow.linalg.quantum.copies import many_copies
from winnow.linalg.quantum.heavy import find_all
from winnow.linalg.quantum.ledger import QueryLedger
from winnow.linalg.quantum.plane import Register

LEVEL_RATE = 4.0  # times ln(4 D): enough for a sample that halves or doubles no direction
READ_BELOW = 4.0  # times the rows that would be kept: so few rows are read rather than searched
LEAVES = 1e-8  # share of a row outside the row space from which it counts as leaving
Numbers = Float[np.ndarray, " _"]


@dataclass(frozen=True)
class Level:
    """One level of the halving: its rows, how many were found and measured, and the queries."""

    n_rows: int
    n_heavy: int
    n_copies: int
    quantum_queries: int


@dataclass(frozen=True)
class Sample:
    """Rows of A, each once, and weights: ``sum weight_i a_i a_i^T`` stands for A^T A."""

    rows: Int64[np.ndarray, " kept"]
    weights: Float[np.ndarray, " kept"]
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Sampler:
    """Samples the rows of A [N D] by leverage, ridge leverage if there is one; all calls on the ledger."""

    A: Float[np.ndarray, "N D"]
    ridge: float
    ledger: QueryLedger
    seed: int

    def sample(self, rate: float) -> Sample:
        """Return a sample of all rows at `rate`: about ``2 rate D`` of them, all N where that is no fewer."""
        n_rows, width = self.A.shape
        order = keyed(self.seed, 0).permutation(n_rows)
        inner_rate = LEVEL_RATE * math.log(4.0 * width)
        sizes = _level_sizes(n_rows, READ_BELOW * 2.0 * width * inner_rate, READ_BELOW * 2.0 * width * rate)
        levels: list[Level] = []
        self.ledger.read(sizes[0])
        rows, weights = order[: sizes[0]], np.ones(sizes[0])
        for number, size in enumerate(sizes[1:], start=1):
            chances = self._chances(order[:size], rows, weights, rate if size == n_rows else inner_rate)
            kept, weights, level = self._level(chances, number)
            rows = order[kept]
            levels.append(level)
        return Sample(rows, weights, tuple(levels))

    def _level(self, chances: Numbers, number: int) -> tuple[np.ndarray, Numbers, Level]:
        before, draws = self.ledger.quantum_queries, keyed(self.seed, number)
        heavy = find_all(chances >= 1.0, self.ledger, draws)
        register = Register(chances, self.ledger, draws)
        for index in heavy:
            register.hide(index)
        copies = many_copies(register, draws)
        drawn, times = np.unique(np.array(copies.rows, dtype=np.int64), return_counts=True)
        self.ledger.read(len(heavy) + len(drawn))
        scale = copies.total / max(len(copies.rows), 1)
        kept = np.concatenate([np.array(heavy, dtype=np.int64), drawn])
        weights = np.concatenate([np.ones(len(heavy)), scale * times / chances[drawn]])
        spent = self.ledger.quantum_queries - before
        return kept, weights, Level(len(chances), len(heavy), len(copies.rows), spent)

    def _chances(self, asked: np.ndarray, rows: np.ndarray, weights: Numbers, rate: float) -> Numbers:
        """Return p of the rows `asked`: what the simulator knows and the algorithm only measures."""
        score = scores_against(self.A[rows] * np.sqrt(weights)[:, None], self.ridge)
        return np.minimum(1.0, rate * score(self.A[asked]))


def _level_sizes(n_rows: int, inner: float, top: float) -> list[int]:
    """Return the sizes of the levels, the one that is read first: no other is cheaper to read."""
    if n_rows <= top:
        return [n_rows]
    sizes = [n_rows]
    while True:
        half = (sizes[-1] + 1) // 2
        sizes.append(half)
        if half <= inner:
            return sizes[::-1]


def scores_against(B: Float[np.ndarray, "kept D"], ridge: float) -> Callable[[np.ndarray], Numbers]:
    """Return the function that scores rows against B: infinite for rows that leave its row space."""
    width = B.shape[1]
    tall = np.concatenate([B, math.sqrt(ridge) * np.eye(width)]) if ridge > 0.0 else B
    norms = np.linalg.norm(tall, axis=0)
    scale = np.where(norms > 0.0, norms, 1.0)
    _, singular, transposed = np.linalg.svd(tall / scale, full_matrices=False)
    is_kept = singular > max(tall.shape) * np.finfo(np.float64).eps * singular[0]
    inside = transposed[is_kept].T
    directions = inside / singular[is_kept]

    def score(rows: np.ndarray) -> Numbers:
        scaled = rows / scale
        found = np.square(scaled @ directions).sum(axis=1)
        if inside.shape[1] == width:
            return found
        outside = np.linalg.norm(scaled - (scaled @ inside) @ inside.T, axis=1)
        return np.where(outside > LEAVES * np.linalg.norm(scaled, axis=1), np.inf, found)

    return score
