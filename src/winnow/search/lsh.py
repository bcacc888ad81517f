"""LSH: rows that agree in some sampled coordinates are compared.   (floor 3 · search)

    P(a pair at the limit shares a table) = 1 - (1 - C(d - limit, k) / C(d, k))^L

by bit sampling: each of L tables draws k coordinates. One table at a time, as sorted keys; none is kept.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from scipy.special import gammaln

from winnow.base.errors import UsageError
from winnow.base.rng import keyed
from winnow.search.outcome import Found
from winnow.search.problem import TABLES, Problem
from winnow.search.signs import Signs

MOST_TABLES = 20_000
MOST_KEY_BITS = 32
ROW_COST, PAIR_COST = 25.0, 25.0  # nanoseconds: a row of a table, a pair compared whole


@final
@dataclass(frozen=True)
class Tables:
    """How many tables of how many bits, and the share of all pairs that meets in one of them."""

    bits: int
    n_tables: int
    meeting: float

    def cost(self, problem: Problem) -> float:
        """Nanoseconds on a machine like the one this was written on."""
        return self.n_tables * (problem.n_rows * ROW_COST + problem.n_pairs * self.meeting * PAIR_COST)


def agreement(width: int, distance: np.ndarray, bits: int) -> np.ndarray:
    """Return the probability that `bits` coordinates, drawn without repetition, avoid `distance` of them."""
    left = np.maximum(width - distance - bits, 0)
    logs = gammaln(width - distance + 1) - gammaln(left + 1) - gammaln(width + 1) + gammaln(width - bits + 1)
    return np.where(width - distance >= bits, np.exp(logs), 0.0)


def best_tables(problem: Problem) -> Tables | None:
    """Return the cheapest tables on data like these; None where all would need more than MOST_TABLES."""
    width, (distances, shares) = problem.width, problem.background
    best: Tables | None = None
    for bits in range(1, min(width, MOST_KEY_BITS) + 1):
        found = float(agreement(width, np.array(problem.limit), bits))
        n_tables = 1 if found >= 1 - 1e-12 else found and math.log(1 - problem.recall) / math.log1p(-found)
        if not 0 < n_tables <= MOST_TABLES:
            break
        meeting = float(shares @ agreement(width, distances, bits))
        tables = Tables(bits, math.ceil(n_tables), meeting)
        if best is None or tables.cost(problem) < best.cost(problem):
            best = tables
    return best


@final
@dataclass(frozen=True)
class Lsh:
    """Tables of sampled coordinates."""

    name: ClassVar[str] = "lsh"
    is_exact: ClassVar[bool] = False

    def find(self, problem: Problem) -> Found:
        """Return each heavy pair with probability at least `recall`; no pair that shares no table is seen."""
        tables = best_tables(problem)
        if tables is None:
            raise UsageError(
                f"lsh would need more than {MOST_TABLES} tables at {problem.limit} of {problem.width} bits, "
                "expected a larger rho or a smaller recall: use method cascade."
            )
        codes, candidates, n_found = [np.zeros(0, np.int64)], 0, 0
        for table in range(tables.n_tables):
            for i, j in _meeting(problem, tables.bits, table):
                codes.append(problem.heavy_codes(i, j))
                candidates, n_found = candidates + len(i), n_found + len(codes[-1])
                if n_found > problem.most:
                    codes = [np.unique(np.concatenate(codes))]
                    n_found = len(codes[0])
                    problem.check_found(n_found)
            problem.watch(table + 1, tables.n_tables)
        plan = (
            f"lsh: {tables.n_tables} tables of {tables.bits} sampled bits; {tables.meeting:.2g} of the pairs "
            "expected to meet in one"
        )
        work = candidates * problem.width + tables.n_tables * problem.n_rows * tables.bits
        n_bytes = 2 * (problem.a.words.nbytes + (0 if problem.b is None else problem.b.words.nbytes))
        return Found(problem.listed(np.concatenate(codes)), candidates, work, n_bytes, plan)


def fill_table(problem: Problem) -> None:
    """Fill one table of a common size and keep nothing, to be timed."""
    for _ in _meeting(problem, min(16, problem.width), 0):
        pass


def _meeting(problem: Problem, bits: int, table: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs whose keys are equal in one table, at most one per row at a time."""
    positions = keyed(problem.seed, TABLES + table).choice(problem.width, bits, replace=False)
    sides = [problem.a] if problem.b is None else [problem.a, problem.b]
    index_bits = np.uint64(max(problem.n_rows - 1, 1).bit_length())
    keys = np.concatenate([_keys(each, positions.astype(np.int32), problem) for each in sides])
    keys <<= index_bits
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    rows = (keys & ((np.uint64(1) << index_bits) - np.uint64(1))).astype(np.int32)
    keys >>= index_bits
    firsts, step, n_a = np.flatnonzero(keys[1:] == keys[:-1]), 1, len(problem.a)
    while len(firsts):
        i, j = rows[firsts], rows[firsts + step]
        if problem.b is not None:
            crossing = (i < n_a) & (j >= n_a)
            i, j = i[crossing], j[crossing] - np.int32(n_a)
        yield i, j
        step += 1
        firsts = firsts[firsts + step < len(keys)]
        firsts = firsts[keys[firsts + step] == keys[firsts]]


def _keys(signs: Signs, positions: np.ndarray, problem: Problem) -> np.ndarray:
    keys = np.empty(signs.planes.shape[1], np.uint64)
    problem.cpu.bit_keys(signs.planes, positions, keys)
    return keys[: len(signs)]
