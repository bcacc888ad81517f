"""Copies: many independent rows from one weighted superposition.   (floor 2 · linalg)

Every measured row has probability ``p_i / sum of p``, whatever the number of iterations; these only decide
how often a measurement yields one. The angle theta is not known. Each outcome tells of it: m iterations carry
information ``4 (2 m + 1)^2`` on theta, so the outcomes of the runs that are needed anyway also give ``N
sin(theta)^2``, the sum of all chances, to about ``1 / sqrt(copies)``.
"""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from winnow.linalg.quantum.heavy import FAILURE, GROWTH
from winnow.linalg.quantum.plane import NONE, Register, fixed_point_loads

BEST_ANGLE = 1.1656  # where x / sin(x)^2 is smallest: loads per copy
FIRST_COPIES = 8
GRID = 4096


@dataclass(frozen=True)
class Copies:
    """Row indices as they were measured, repeats included, and the estimate of the sum of chances."""

    rows: tuple[int, ...]
    total: float


def many_copies(register: Register, draws: np.random.Generator) -> Copies:
    """Return as many copies as the chances sum to, by the running estimate of that sum.

    About ``1.45 sqrt(N k)`` loads for k copies, and no more than a search for one row where the sum is below
    1.
    """
    outcomes = _Outcomes(len(register))
    rows = _first_copies(register, outcomes, draws)
    if not rows:
        return Copies((), 0.0)
    theta = outcomes.likeliest()
    next_look = 2 * len(rows)
    while len(rows) < len(register) * math.sin(theta) ** 2:
        index = outcomes.run(register, max(0, round((BEST_ANGLE / theta - 1.0) / 2.0)))
        if index != NONE:
            rows.append(index)
        if outcomes.n_runs >= next_look:
            theta, next_look = outcomes.likeliest(), math.ceil(1.2 * outcomes.n_runs)
    return Copies(tuple(rows), len(register) * math.sin(outcomes.likeliest()) ** 2)


def _first_copies(register: Register, outcomes: "_Outcomes", draws: np.random.Generator) -> list[int]:
    """Return a few copies by runs of random length, their range settling where it fits the unknown angle."""
    rows: list[int] = []
    limit = 1.0
    while len(rows) < FIRST_COPIES:
        if limit > math.sqrt(len(register)):
            index = register.fixed_point(fixed_point_loads(1.0 / len(register), FAILURE), FAILURE)
            if index == NONE or not rows:
                return rows if index == NONE else [*rows, index]
        index = outcomes.run(register, int(draws.integers(0, math.ceil(limit))))
        # Beyond the angle half of the runs miss: a range that only grew would end far beyond it now and then.
        limit = limit * GROWTH if index == NONE else max(1.0, limit / GROWTH**2)
        if index != NONE:
            rows.append(index)
    return rows


class _Outcomes:
    """How often runs of m iterations found a row or did not, and the angle under which that is likeliest."""

    def __init__(self, n_rows: int) -> None:
        self._n_rows = n_rows
        self._hits: Counter[int] = Counter()
        self._misses: Counter[int] = Counter()

    @property
    def n_runs(self) -> int:
        return self._hits.total() + self._misses.total()

    def run(self, register: Register, iterations: int) -> int:
        index = register.amplified(iterations)
        (self._misses if index == NONE else self._hits)[iterations] += 1
        return index

    def likeliest(self) -> float:
        """Maximum likelihood: the best of a fine grid, then of a finer one around it."""
        grid = np.geomspace(0.5 / math.sqrt(self._n_rows), math.pi / 2.0, GRID)
        for _ in range(2):
            best = int(np.argmax(self._log_likelihood(grid)))
            grid = np.geomspace(grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)], GRID)
        return float(grid[np.argmax(self._log_likelihood(grid))])

    def _log_likelihood(self, theta: np.ndarray) -> np.ndarray:
        total = np.zeros_like(theta)
        for m in self._hits.keys() | self._misses.keys():
            hit = np.clip(np.sin((2 * m + 1) * theta) ** 2, 1e-300, 1.0)
            miss = np.clip(1.0 - hit, 1e-16, 1.0)
            total += self._hits[m] * np.log(hit) + self._misses[m] * np.log(miss)
        return total
