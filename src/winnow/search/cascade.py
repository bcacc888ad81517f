"""Cascade: every pair is looked at, on few bits first.   (floor 3 · search)

    distance on s sampled bits <= t, then distance <= limit        t: the smallest with P(kept) >= recall

A pair at the limit keeps to t with the hypergeometric probability, whatever its bits are, since the bits are
drawn at random. Exact is the cascade without its first step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from scipy.stats import binom, hypergeom

from winnow.base.rng import keyed
from winnow.kernels.bit_products.scan import found_by
from winnow.kernels.operands import BitScan
from winnow.search.outcome import Found
from winnow.search.problem import SKETCH, Problem
from winnow.search.signs import Signs

TILE_WORDS = 1 << 32  # compared between two looks at the clock
WHOLE_WORDS = 300  # what a survivor's whole comparison costs, in words of the scan
MOST_SKETCH = 16  # words


@final
@dataclass(frozen=True)
class Sketch:
    """How many words of sampled bits come first, their limit, and the share of pairs that survives it."""

    words: int
    limit: int
    survivors: float

    @property
    def cost(self) -> float:
        """Words compared per pair."""
        return self.words + self.survivors * WHOLE_WORDS


def best_sketch(problem: Problem) -> Sketch | None:
    """Return the cheapest first step on data like these; None where none is cheaper than to look whole."""
    whole = problem.a.words.shape[1]
    distances, shares = problem.background
    kept = problem.recall
    best: Sketch | None = None
    for words in range(1, min(whole - 1, MOST_SKETCH) + 1):
        bits = 64 * words
        if bits >= problem.width:
            break
        limit = int(hypergeom.ppf(kept, problem.width, problem.limit, bits))
        survivors = float(shares @ binom.cdf(limit, bits, distances / problem.width))
        sketch = Sketch(words, limit, survivors)
        if sketch.cost < (whole if best is None else best.cost):
            best = sketch
    return best


@final
@dataclass(frozen=True)
class Exact:
    """Every pair, whole."""

    name: ClassVar[str] = "exact"
    is_exact: ClassVar[bool] = True

    def find(self, problem: Problem) -> Found:
        """Return every heavy pair; ``pairs * width`` multiply-adds of one bit."""
        return _scan(problem, None, f"exact: {problem.n_pairs} pairs of {problem.width} bits")


@final
@dataclass(frozen=True)
class Cascade:
    """Every pair on sampled bits, survivors whole."""

    name: ClassVar[str] = "cascade"
    is_exact: ClassVar[bool] = False

    def find(self, problem: Problem) -> Found:
        """Return each heavy pair with probability at least `recall`; every pair costs its sampled bits."""
        sketch = best_sketch(problem)
        if sketch is None:
            note = "cascade: no first step pays here, every pair was compared whole"
            return _scan(problem, None, note)
        plan = (
            f"cascade: {64 * sketch.words} sampled bits within {sketch.limit}, then all {problem.width} "
            f"within {problem.limit}; {sketch.survivors:.2g} of the pairs expected to survive"
        )
        return _scan(problem, sketch, plan)


def sampled(signs: Signs, positions: np.ndarray, problem: Problem) -> np.ndarray:
    """Return the bits at `positions`, whole words of them, as planes."""
    words = positions.reshape(-1, 64).astype(np.int32)
    planes = np.empty((len(words), signs.planes.shape[1]), np.uint64)
    for out, each in zip(planes, words, strict=True):
        problem.cpu.bit_keys(signs.planes, each, out)
    return planes


def _scan(problem: Problem, sketch: Sketch | None, plan: str) -> Found:
    found: list[np.ndarray] = []
    survivors = n_found = n_bytes = 0
    for scan, done, held in _tiles(problem, sketch):
        n_bytes = held
        pairs, passed = found_by(scan, problem.cpu)
        pairs[:, 0] += done
        found.append(pairs)
        survivors, n_found = survivors + passed, n_found + len(pairs)
        problem.check_found(n_found)
        problem.watch(done + len(scan.rows), len(problem.a))
    first = problem.width if sketch is None else 64 * sketch.words
    again = 0 if sketch is None else survivors * problem.width
    candidates = problem.n_pairs if sketch is None else survivors
    return Found(np.concatenate(found), candidates, problem.n_pairs * first + again, n_bytes, plan)


def _tiles(problem: Problem, sketch: Sketch | None) -> Iterator[tuple[BitScan, int, int]]:
    """Yield scans of some rows against all columns, each with its first row and the bytes held."""
    a, b = problem.a, problem.columns
    if sketch is None:
        rows, planes, limit = a.words, b.planes, problem.limit
    else:
        positions = keyed(problem.seed, SKETCH).permutation(problem.width)[: 64 * sketch.words]
        planes, limit = sampled(b, positions, problem), sketch.limit
        of_a = planes if problem.b is None else sampled(a, positions, problem)
        rows = np.ascontiguousarray(of_a[:, : len(a)].T)
    n_bytes = a.words.nbytes + b.words.nbytes * (problem.b is not None) + b.planes.nbytes + rows.nbytes
    n_bytes += 0 if sketch is None else planes.nbytes
    step = max(TILE_WORDS // (len(b) * len(planes)), 256)
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        whole = (None, None) if sketch is None else (a.words[part], b.words)
        after = start if problem.b is None else None
        yield BitScan(rows[part], planes, len(b), limit, *whole, problem.limit, after), start, n_bytes
