"""Pairs: heavy_pairs, from the caller's arrays to a report.   (floor 3 · search)"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.base.rng import keyed
from winnow.kernels import Cpu, open_cpu
from winnow.search.aggregate import Aggregate
from winnow.search.canaries import Planted, plant, plant_reals
from winnow.search.cascade import Cascade, Exact
from winnow.search.cost import Method, choose
from winnow.search.gemm import Gemm, near_cosines
from winnow.search.lsh import Lsh
from winnow.search.outcome import Found, Pairs, Report, clopper_pearson
from winnow.search.problem import PROJECTION, Problem, check_well_posed, product_limit, random_hits
from winnow.search.reals import ROUNDING, Reals, bits_for, cosines, read_reals
from winnow.search.signs import Signs, is_signs, read_signs

METHODS = ("auto", "exact", "cascade", "aggregate", "lsh", "gemm")
DEFAULT_MOST = 10_000_000

Watch = Callable[[int, int], None]


@final
@dataclass(frozen=True)
class _Options:
    """What was asked for, checked; `methods` are those that may be chosen from."""

    rho: float
    methods: dict[str, Method]
    recall: float
    seed: int
    max_pairs: int | None
    width: int
    canaries: int
    cpu: Cpu
    watch: Watch

    @property
    def most(self) -> int:
        return DEFAULT_MOST if self.max_pairs is None else self.max_pairs

    def check_posed(self, width: int, n_rows: int, n_pairs: int, *, is_real: bool) -> None:
        if self.max_pairs is None:
            hits = random_hits(self.rho, width, n_pairs, is_real=is_real)
            is_exact = len(self.methods) == 1 and all(method.is_exact for method in self.methods.values())
            check_well_posed(self.rho, width, n_rows, hits, is_exact=is_exact)

    def problem(self, a: Signs, b: Signs | None, limit: int, recall: float) -> Problem:
        room = (
            2 * self.most + 1000 * self.canaries
        )  # canaries of a crowded row are near all of its neighbours
        return Problem(a, b, limit, recall, self.seed, self.cpu, room, self.watch)


def heavy_pairs(  # noqa: PLR0913 (a public verb: the names its users expect)
    A: np.ndarray | Tensor,
    B: np.ndarray | Tensor | None = None,
    *,
    rho: float,
    method: Literal["auto", "exact", "cascade", "aggregate", "lsh", "gemm"] = "auto",
    recall: float = 0.99,
    rng: int | torch.Generator = 0,
    max_pairs: int | None = None,
    group_size: Literal["auto", "paper"] = "auto",
    degree: int = 0,
    repeats: int = 0,
    width: int = 0,
    canaries: int = 512,
    threads: int | None = None,
    progress: Watch | None = None,
) -> Pairs:
    """Return the pairs of rows (i of A, j of B; without B, i < j of A) whose product is at least rho * width.

    Rows are +-1 vectors (bool, signed integers, or uint64 words of bits, of which `width` counts where it is
    no multiple of 64), or real ones (float16, float32, float64), for which rho is the cosine. Every pair
    returned was computed exactly; a cosine passes from 1e-12 below rho on. A heavy pair is found with
    probability at least `recall`, which is measured on `canaries` planted pairs (0: not measured).

    exact and gemm look at all pairs, in bits and in floats, and leave none out; cascade looks at all on a few
    sampled bits first, lsh at those that agree in some, aggregate at groups (`group_size`, `degree`,
    `repeats`; 0: by rule). auto takes the cheapest by a cost model measured on the spot. Real vectors are
    searched by the signs of random projections. Costs: see the report's plan; memory is that of the bits,
    so an array may be a memory-mapped file larger than memory. Same seed, same pairs, for any `threads`.

    Raises UsageError for other input, for a threshold that random pairs pass (exact and gemm: only where
    they would be millions; none where `max_pairs` is given), and for more heavy pairs than `max_pairs`.
    After arXiv:2311.11429 (abstract), construction ours.
    """
    methods = _methods(method, group_size, degree, repeats)
    cpu = open_cpu(len(os.sched_getaffinity(0)) if threads is None else threads)
    watch = progress or (lambda done, total: None)
    options = _Options(
        rho, methods, recall, _checked(rho, recall, max_pairs, canaries, rng), max_pairs, width, canaries,
        cpu, watch,
    )  # fmt: skip
    started = time.perf_counter()
    a, b = _array("A", A), None if B is None else _array("B", B)
    if b is not None and is_signs(a) != is_signs(b):
        raise UsageError(f"A is {a.dtype} and B {b.dtype}, expected +-1 vectors in both or floats in both.")
    return (_search_signs if is_signs(a) else _search_reals)(a, b, options, started)


def _search_signs(a: np.ndarray, b: np.ndarray | None, options: _Options, started: float) -> Pairs:
    left = read_signs("A", a, options.width, options.cpu)
    right = None if b is None else read_signs("B", b, options.width, options.cpu)
    _check_widths(left, right)
    limit = product_limit(options.rho, left.width)
    problem = options.problem(left, right, limit, options.recall)
    options.check_posed(left.width, problem.n_rows, problem.n_pairs, is_real=False)
    method, why = _chosen(problem, options.methods)
    planted = None if method.is_exact or not options.canaries else plant(problem, options.canaries)
    found = method.find(planted.problem if planted else problem)
    pairs, hits = planted.apart(found) if planted else (found.pairs, 0)
    products = left.width - 2 * pairs[:, 2]
    report = _report(method.name, method.is_exact, found, (planted, hits), why, started, options)
    return _kept(pairs, products, report, options)


def _search_reals(a: np.ndarray, b: np.ndarray | None, options: _Options, started: float) -> Pairs:
    left, right = read_reals("A", a), None if b is None else read_reals("B", b)
    _check_widths(left, right)
    n = len(left)
    n_pairs = n * (n - 1) // 2 if right is None else n * len(right)
    n_rows = n + (0 if right is None else len(right))
    options.check_posed(left.width, n_rows, n_pairs, is_real=True)
    half = 1 - (1 - options.recall) / 2  # of what may be missed, bits and the method have half each
    shape = bits_for(options.rho, half, n_pairs, n_rows)
    wanted = [method for method in options.methods.values() if not method.is_exact]
    planted, hits, why = None, 0, ""
    if shape is None or not wanted or n_pairs < left.width:
        near = near_cosines(left, right, options.rho)
        found = Found(
            np.column_stack([near, near[:, 0]]), n_pairs, n_pairs * left.width, 0,
            f"gemm: {n_pairs} products of {left.width} float32, near ones again in float64",
        )  # fmt: skip
        name, is_exact, pairs = "gemm", True, found.pairs
    else:
        bits, limit = shape
        draws = keyed(options.seed, PROJECTION)
        projection = draws.standard_normal((left.width, bits), dtype=np.float32)
        signs = left.signs(projection), None if right is None else right.signs(projection)
        problem = options.problem(*signs, limit, half)
        method, why = _chosen(problem, {each.name: each for each in wanted})
        if options.canaries:
            planted = plant_reals(problem, left, options.rho, projection, options.canaries)
        found = method.find(planted.problem if planted else problem)
        pairs, hits = planted.apart(found) if planted else (found.pairs, 0)
        name, is_exact = method.name, False
        why = f"{why}{'; ' if why else ''}signs of {bits} projections within {limit}"
    values = cosines(left, left if right is None else right, pairs[:, 0], pairs[:, 1])
    heavy = values >= options.rho - ROUNDING
    report = _report(name, is_exact, found, (planted, hits), why, started, options)
    return _kept(pairs[heavy], values[heavy], report, options)


def _chosen(problem: Problem, methods: dict[str, Method]) -> tuple[Method, str]:
    if len(methods) == 1:
        return next(iter(methods.values())), ""
    if problem.n_pairs < 1000 and "exact" in methods:
        return methods["exact"], "auto chose exact: there are few pairs"
    return choose(problem, methods)


def _report(
    name: str,
    is_exact: bool,
    found: Found,
    canaries: tuple[Planted | None, int],
    why: str,
    started: float,
    options: _Options,
) -> Report:
    planted, hits = canaries
    count = len(planted.sources) if planted else 0
    recall, interval = (1.0, (1.0, 1.0)) if is_exact else (math.nan, (0.0, 1.0))
    if count:
        recall, interval = hits / count, clopper_pearson(hits, count)
    plan = f"{found.plan}; {why}" if why else found.plan
    seconds = time.perf_counter() - started
    work = found.candidates, found.multiply_adds, found.bytes
    return Report(name, recall, interval, count, *work, seconds, options.cpu.threads, plan, found.notes)


def _kept(pairs: np.ndarray, products: np.ndarray, report: Report, options: _Options) -> Pairs:
    if len(pairs) > options.most:
        raise UsageError(
            f"{len(pairs)} pairs are heavy, more than max_pairs {options.most}: raise rho or max_pairs."
        )
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Pairs(pairs[order, 0], pairs[order, 1], products[order], report)


def _methods(method: str, group_size: str, degree: int, repeats: int) -> dict[str, Method]:
    if method not in METHODS:
        raise UsageError(f"method is {method!r}, expected one of {', '.join(METHODS)}.")
    if group_size not in ("auto", "paper"):
        raise UsageError(f"group_size is {group_size!r}, expected auto or paper.")
    if degree < 0 or repeats < 0:
        raise UsageError(f"degree is {degree}, repeats {repeats}; expected 0 for a choice by rule, or more.")
    aggregate = Aggregate(group_size == "paper", degree, repeats)
    every: list[Method] = [Exact(), Cascade(), Lsh(), Gemm(), aggregate]
    return {each.name: each for each in every if method in ("auto", each.name)}


def _checked(
    rho: float, recall: float, max_pairs: int | None, canaries: int, rng: int | torch.Generator
) -> int:
    """Check the numbers and return the seed that `rng` stands for."""
    if not 0 < rho <= 1:
        raise UsageError(f"rho is {rho}, expected 0 < rho <= 1: the share of the width, or the cosine.")
    if not 0 < recall < 1:
        raise UsageError(f"recall is {recall}, expected 0 < recall < 1: method exact leaves nothing out.")
    if max_pairs is not None and max_pairs < 1:
        raise UsageError(f"max_pairs is {max_pairs}, expected at least 1.")
    if not 0 <= canaries <= 100_000:
        raise UsageError(f"canaries is {canaries}, expected 0..100000.")
    if isinstance(rng, torch.Generator):
        return int(torch.randint(0, 2**62, (), generator=rng))
    keyed(rng, 0)  # refuses what is no seed
    return rng


def _check_widths(a: Signs | Reals, b: Signs | Reals | None) -> None:
    if b is not None and a.width != b.width:
        raise UsageError(f"A has width {a.width} and B {b.width}, expected the same.")


def _array(name: str, value: np.ndarray | Tensor) -> np.ndarray:
    """Return the caller's array, a tensor's without a copy; dtypes are judged where they are read."""
    if not isinstance(value, Tensor):
        return value
    if value.device.type != "cpu":
        raise UsageError(f"{name} lies on {value.device}, expected the CPU: pass {name}.cpu().")
    value = value.detach()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
