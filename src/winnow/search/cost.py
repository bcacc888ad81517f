"""Cost: which method is the cheapest here, by rates measured in a moment.   (floor 3 · search)

A scan of a few rows, some pairs compared whole, one table and one product of floats, on the caller's own
data: some tens of milliseconds. Which method wins may differ between machines and runs where two are close;
name a method where the same pairs must come out on every machine.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from winnow.kernels.operands import BitScan
from winnow.search.aggregate import Aggregate
from winnow.search.cascade import WHOLE_WORDS, Cascade, Exact, best_sketch
from winnow.search.gemm import Gemm
from winnow.search.lsh import Lsh, best_tables, fill_table
from winnow.search.problem import Problem
from winnow.search.signs import Signs

PROBE_PAIRS = 1 << 24
PROBE_ROWS = 1 << 15
TABLE_SECONDS = 3e-4  # of a table without rows

Method = Exact | Cascade | Lsh | Gemm | Aggregate


@final
@dataclass(frozen=True)
class Rates:
    """Seconds of each step on this machine."""

    word: float  # one word of one pair, scanned
    pair: float  # one pair compared whole
    row: float  # one row of one table
    multiply_add: float  # of float32


def measure(problem: Problem) -> Rates:
    """Return this machine's rates on the caller's vectors."""
    b, cpu = problem.columns, problem.cpu
    some = Signs(np.ascontiguousarray(b.words[:PROBE_ROWS]), b.width)
    words = min(2, b.words.shape[1])
    rows = np.ascontiguousarray(problem.a.words[: max(PROBE_PAIRS // (words * len(some)), 1), :words])
    scan = BitScan(rows, np.ascontiguousarray(some.planes[:words]), len(some), -1)
    scanned = _seconds(lambda: cpu.bit_products(scan, np.empty((3, 0), np.int32)))
    picks = (np.arange(20_000, dtype=np.int64) * 7919 % len(some)).astype(np.int32)
    out = np.empty(len(picks), np.int32)
    compared = _seconds(lambda: cpu.bit_distances(some.words, some.words, picks, picks[::-1].copy(), out))
    one_table = replace(problem, a=some, b=None, limit=problem.limit)
    tabled = _seconds(lambda: fill_table(one_table))
    x = torch.ones(256, min(problem.width, 4096))
    multiplied = _seconds(lambda: x @ x.T)
    return Rates(
        scanned / (len(rows) * len(some) * words),
        compared / len(picks),
        tabled / len(some),
        multiplied / (256 * x.numel()),
    )


def choose(problem: Problem, methods: Mapping[str, Method]) -> tuple[Method, str]:
    """Return the method of the least estimated seconds, and the estimates in words."""
    found = estimates(problem, measure(problem))
    seconds = {name: found[name] for name in methods}
    best = min(seconds, key=lambda name: seconds[name])
    listed = ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items() if math.isfinite(value))
    return methods[best], f"auto chose {best}; estimated {listed}"


def estimates(problem: Problem, rates: Rates) -> dict[str, float]:
    """Return the seconds that each method is expected to take; infinite where it does not apply."""
    n_pairs, words = problem.n_pairs, problem.a.words.shape[1]
    sketch, tables = best_sketch(problem), best_tables(problem)
    cascade, lsh = n_pairs * words * rates.word, math.inf
    if sketch is not None:
        survivors = n_pairs * sketch.survivors
        cascade = n_pairs * sketch.words * rates.word + survivors * WHOLE_WORDS * rates.word
    if tables is not None:
        per_table = TABLE_SECONDS + problem.n_rows * rates.row + n_pairs * tables.meeting * rates.pair
        lsh = tables.n_tables * per_table
    heavy = 1 - 2 * problem.limit / problem.width
    per_pair = 16 / heavy**2 if heavy * math.sqrt(problem.width) >= 8 else math.inf
    return {
        "exact": n_pairs * words * rates.word,
        "cascade": cascade,
        "lsh": lsh,
        "gemm": n_pairs * problem.width * rates.multiply_add,
        "aggregate": n_pairs * per_pair * rates.multiply_add,
    }


def _seconds(work: Callable[[], object]) -> float:
    """Return the better of two runs."""
    best = math.inf
    for _ in range(2):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best
