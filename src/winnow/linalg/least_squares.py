"""Least squares: lstsq, and how a method is chosen.   (floor 2 · linalg)"""

import math
import os
from dataclasses import replace
from typing import Literal

import numpy as np

from winnow.base.errors import UsageError
from winnow.linalg.cost import SMALL, Estimate, estimate, measured_rates
from winnow.linalg.gate import Matrix, Problem, Seed, open_problem, seed_of
from winnow.linalg.result import Options, Result
from winnow.linalg.rows import DenseRows, OperatorRows, RowBlocks
from winnow.linalg.solvers import by_gram, by_lapack, by_sketch

_SOLVERS = {"gram": by_gram, "sketch": by_sketch, "lapack": by_lapack}


def lstsq(  # noqa: PLR0913 (a public verb, with the options that its users know)
    A: Matrix,
    b: object,
    *,
    eps: float | None = None,
    ridge: float | np.ndarray = 0.0,
    rcond: float | None = None,
    method: Literal["auto", "gram", "sketch", "lapack"] = "auto",
    rng: Seed = 0,
    certify: bool = True,
    sketch_rows: int | None = None,
    threads: int | None = None,
) -> Result:
    """Return the x that minimises ``|A x - b|^2 + sum(ridge * x^2)``, of least norm where there are several.

    A [N, D]: numpy array, memory map, torch tensor on the CPU, scipy.sparse matrix, LinearOperator or
    RowBlocks. b [N], or [N, K] for K problems at once. Nothing is modified, and no second copy of A is made
    but by "lapack".

    eps=None solves to rounding: a backward error near 1e-16, as a QR factorisation has. Otherwise
    ``|A x - b|^2 <= (1 + eps) min`` for every column of b, certified by a pass over A: see
    `Result.eps_certified`. The certificate fails only where the sketch lengthens a vector of the range of A
    by more than a stated factor, modelled to happen with a probability below 1e-5; `certify=False` leaves the
    last passes out and claims nothing.

    method  gram     N D^2 operations, then about 7 passes; conditions up to 1e7, "sketch" from there on
            sketch   one pass and a little, then 3 to 5 passes (eps=1e-2), some 40 (eps=None)
            lapack   numpy.linalg.lstsq: about 5 N D^2 operations and a copy of A
            auto     what a model of costs, measured once per process, takes for the quickest
    ridge a number, or one per column. rcond: singular values up to rcond times the largest count as zero;
    None leaves out what rounding hides, max(N, D) * 2.2e-16, judged after columns are scaled to norm 1.
    "sketch" judges by the singular values of the sketch. sketch_rows: the height of S, 8 D or 16 D and
    at least 512 if left out; with eps at least 1024, then certificates were within 4 times the true eps.

    The same bits for any `threads` and any pieces in which the rows come, except in "lapack" and where a
    condition above 1e7 or a deficient rank needs LAPACK: there the BLAS's own threads may change the last
    ones. The bits depend on the method, so name it to have them again.

    Raises UsageError for what is not real, finite and of matching shapes, ResourceError where memory lacks.
    Void where entries leave 1e-140 .. 1e140 by method "gram" and "sketch". After arXiv:2311.14823 (abstract),
    construction ours.
    """
    threads = threads or len(os.sched_getaffinity(0))
    problem = open_problem(A, b, ridge, threads)
    _checked(eps, rcond, sketch_rows)
    options = Options(eps, rcond, seed_of(rng), certify, threads, sketch_rows)
    chosen, plan = _choose(problem, method, options)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return replace(_SOLVERS[chosen](problem, options), plan=plan)


def _choose(problem: Problem, method: str, options: Options) -> tuple[str, str]:
    """Return the method and, in words, why."""
    n, d = problem.rows.shape
    if method in _SOLVERS:
        return method, f"{method}: as asked"
    if method != "auto":
        raise UsageError(f"method is {method!r}, expected one of auto, {', '.join(_SOLVERS)}.")
    if not isinstance(problem.rows, DenseRows) or isinstance(problem.rows.source, RowBlocks):
        if n < 2 * d:
            return "lapack", f"lapack: {n} x {d} is not tall"
        chosen = (
            "sketch" if options.eps is not None and not isinstance(problem.rows, OperatorRows) else "gram"
        )
        return chosen, f"{chosen}: the matrix is read in passes"
    if n < 2 * d or n * d * d < SMALL:
        return "lapack", f"lapack: {n} x {d} is {'small' if n >= 2 * d else 'not tall'}"
    found = estimate((n, d), len(problem.b), options.eps, measured_rates(options.threads))
    if isinstance(problem.rows.source, np.memmap) and problem.rows.source.nbytes > 1 << 28:
        found = replace(found, lapack=math.inf)  # it would copy the file into memory
    times = {"lapack": found.lapack, "gram": found.gram, "sketch": found.sketch}
    chosen = min(times, key=lambda name: times[name])
    return chosen, f"{chosen}: {_in_words(found)} expected for {n} x {d}"


def _in_words(found: Estimate) -> str:
    return f"lapack {found.lapack:.3g} s, gram {found.gram:.3g} s, sketch {found.sketch:.3g} s"


def _checked(eps: float | None, rcond: float | None, height: int | None) -> None:
    if eps is not None and not (0 < eps < math.inf):
        raise UsageError(f"eps is {eps}, expected a number above 0, or None for rounding errors alone.")
    if rcond is not None and not (-math.inf < rcond < 1):
        raise UsageError(f"rcond is {rcond}, expected a number below 1, or None for max(N, D) * 2.2e-16.")
    if height is not None and height < 1:
        raise UsageError(f"sketch_rows is {height}, expected more than the number of columns.")
