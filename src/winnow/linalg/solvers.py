"""Solvers: gram, sketch, lapack; each takes a checked problem to a result.   (floor 2 · linalg)"""

import math

import numpy as np
from jaxtyping import Float64

from winnow.base.errors import UsageError
from winnow.kernels.row_sketch import open_passes
from winnow.linalg.cost import NONZEROS, sketch_height
from winnow.linalg.gate import Problem, check_finite, check_memory
from winnow.linalg.refine import certificate, evaluate, to_eps, to_rounding
from winnow.linalg.result import Options, Result
from winnow.linalg.rows import DenseRows, OperatorRows, RowBlocks, Rows, Sketch, SparseRows
from winnow.linalg.triangle import EPS, Triangle, exact, from_gram, from_sketch, truncated


def by_gram(problem: Problem, options: Options) -> Result:
    """Solve behind the triangle of the Gram matrix; where that is too ill-conditioned, of a sketch."""
    n, d = problem.rows.shape
    check_memory(5 * 8 * d * d, f"the Gram matrix of {d} columns")
    gram = problem.rows.gram()
    triangle = None
    if np.isfinite(gram).all():
        triangle = from_gram(gram, problem.ridge, open_passes(options.threads))
    if triangle is None:
        return by_sketch(problem, options) if n >= 2 * d else by_lapack(problem, options)
    triangle = _at_rank(triangle, (n, d), options)
    gradient = evaluate(problem, np.zeros((len(problem.b), d))).gradient
    start = triangle.solve(triangle.solve_transposed(gradient))
    return _refined(problem, triangle, start, options, "gram")


def by_sketch(problem: Problem, options: Options) -> Result:
    """Solve behind the triangle of a sparse sign sketch, from the solution of the sketched problem."""
    n, d = problem.rows.shape
    height = options.height or sketch_height((n, d), options.eps, is_far=_is_far(problem))
    if height < d + 1:
        raise UsageError(f"sketch_rows is {height} for {d} columns, expected more: 8 x {d} is a good choice.")
    how = Sketch(-(-height // NONZEROS) * NONZEROS, NONZEROS, options.seed)
    check_memory(8 * d * (3 * how.height + 3 * d), f"a sketch of {how.height} x {d}")
    passes = open_passes(options.threads)
    sketched = problem.rows.sketch(how)
    largest = np.abs(sketched).max()
    if not (largest == 0 or 1e-140 < largest < 1e140):
        check_finite(problem.rows)
    right = DenseRows(problem.b.T, passes).sketch(how)
    triangle, rotated = from_sketch(
        sketched, right, problem.ridge, passes, lambda a: DenseRows(a, passes).gram()
    )
    triangle = _at_rank(triangle, (n, d), options)
    return _refined(problem, triangle, triangle.solve_rotated(rotated), options, "sketch")


def by_lapack(problem: Problem, options: Options) -> Result:
    """Solve by numpy.linalg.lstsq in float64, which copies A."""
    n, d = problem.rows.shape
    check_memory(8 * 3 * n * d, f"method 'lapack' for {n} x {d}")
    a = in_memory(problem.rows)
    if not np.isfinite(a).all():
        check_finite(problem.rows)
    x, s, rank = _numpy(a, problem, options.rcond)
    if not np.isfinite(x).all():
        raise UsageError("LAPACK found no finite solution; expected entries far from 1e308: scale A and b.")
    point = evaluate(problem, x)
    cond = float(s[0] / s[-1]) if s[-1] > 0 else math.inf
    error, eps = math.nan, math.inf
    if options.certify and rank == d <= n:
        passes = open_passes(options.threads)
        whole = exact(a, DenseRows(a, passes).gram(), problem.ridge, passes, cond)
        error = float(whole.backward_error(x, point.gradient, point.objective).max())
        w = np.square(whole.solve_transposed(point.gradient)).sum(axis=1)
        eps = float(certificate(whole, w, point.objective).max())
    return Result(
        x=problem.give(x),
        squares=point.squares,
        rank=rank,
        eps_certified=eps,
        backward_error=error,
        cond_est=cond,
        passes_over_A=problem.rows.passes,
        method="lapack",
        plan="",
        is_converged=options.eps is None or eps <= options.eps or rank < d,
        message=_of_rank(rank, d),
        shape=(n, d),
        spectrum=s,
    )


def _refined(
    problem: Problem, triangle: Triangle, start: Float64[np.ndarray, "B D"], options: Options, method: str
) -> Result:
    at = evaluate(problem, start)
    if not (np.isfinite(at.squares).all() and np.isfinite(at.gradient).all()):
        check_finite(problem.rows)
    if options.eps is None:
        reached = to_rounding(problem, triangle, at)
    else:
        reached = to_eps(problem, triangle, at, options.eps, verify=options.certify)
    point, d = reached.point, problem.rows.shape[1]
    if not np.isfinite(point.x).all():
        check_finite(problem.rows)
    error, eps = math.nan, math.inf
    if options.certify:
        w = np.square(triangle.solve_transposed(point.gradient)).sum(axis=1)
        eps = float(certificate(triangle, w, point.objective).max())
        error = float(triangle.backward_error(point.x, point.gradient, point.objective).max())
    return Result(
        x=problem.give(point.x),
        squares=point.squares,
        rank=triangle.rank,
        eps_certified=eps,
        backward_error=error,
        cond_est=triangle.cond,
        passes_over_A=problem.rows.passes,
        method=method,
        plan="",
        is_converged=reached.is_converged,
        message=" ".join(
            filter(None, [_of_rank(triangle.rank, d), _of_end(reached.is_converged, eps, error, options)])
        ),
        shape=problem.rows.shape,
        spectrum=triangle.r,
    )


def _of_rank(rank: int, d: int) -> str:
    return "" if rank == d else f"The rank is {rank} of {d}: of all solutions, the one of least norm."


def _of_end(is_converged: bool, eps: float, error: float, options: Options) -> str:
    """Say what was not reached."""
    if options.eps is None:
        return (
            ""
            if is_converged
            else (
                f"The backward error is {error:.1e}, expected 2e-15 or less: "
                "try method='lapack', or scale the rows."
            )
        )
    if not options.certify:
        return "Nothing was certified, as asked."
    if is_converged and eps > options.eps:
        return "The residual is of the size of rounding errors: eps, relative to it, means nothing."
    return (
        ""
        if is_converged
        else (
            f"{eps:.2g} is certified, {options.eps:.2g} was asked: raise sketch_rows, or use method='lapack'."
        )
    )


def _at_rank(triangle: Triangle, shape: tuple[int, int], options: Options) -> Triangle:
    """Leave out the directions that count as zero."""
    hidden = EPS * max(shape)
    if options.rcond is None:
        return triangle if triangle.cond < 0.1 / hidden else truncated(triangle, hidden)
    tolerance = max(options.rcond, EPS)
    s = triangle.singular_values()
    return triangle if s[-1] > tolerance * s[0] else truncated(triangle, tolerance)


def _is_far(problem: Problem) -> bool:
    """Say whether a pass reads more than memory."""
    rows = problem.rows
    return isinstance(rows, DenseRows) and isinstance(rows.source, RowBlocks | np.memmap)


def in_memory(rows: Rows) -> Float64[np.ndarray, "N D"]:
    """Return the whole matrix as float64, itself where it is that; ResourceError where it does not fit."""
    check_memory(8 * rows.shape[0] * rows.shape[1], f"a copy of {rows.shape[0]} x {rows.shape[1]}")
    if isinstance(rows, DenseRows):
        if isinstance(rows.source, np.ndarray):
            rows.passes += 1
            return np.asarray(rows.source, np.float64)
        return np.concatenate([piece for _, piece in rows.pieces()]).astype(np.float64)
    if isinstance(rows, SparseRows):
        rows.passes += 1
        return rows.matrix.toarray()
    assert isinstance(rows, OperatorRows)
    rows.passes += 1
    return np.asarray(rows.operator.matmat(np.eye(rows.shape[1])), np.float64)


def _numpy(
    a: Float64[np.ndarray, "N D"], problem: Problem, rcond: float | None
) -> tuple[Float64[np.ndarray, "B D"], Float64[np.ndarray, " _"], int]:
    """Return the solutions, the singular values and the rank of A, or of A stacked on the ridge's root."""
    (n, d), ridge = a.shape, problem.ridge
    if not ridge.any():
        x, _, rank, s = np.linalg.lstsq(a, problem.b.T, rcond=rcond)
        return x.T, s, int(rank)
    if n < d and ridge.min() == ridge.max():
        # Of all (x, z) with A x + root z = b the shortest is the ridge's solution: N equations, not N + D.
        wide = np.concatenate([a, np.sqrt(ridge[0]) * np.eye(n)], axis=1)
        x, _, _, s = np.linalg.lstsq(wide, problem.b.T, rcond=rcond)
        return x[:d].T, s, d
    tall = np.concatenate([a, np.diag(np.sqrt(ridge))])
    right = np.concatenate([problem.b.T, np.zeros((d, len(problem.b)))])
    x, _, rank, s = np.linalg.lstsq(tall, right, rcond=rcond)
    return x.T, s, int(rank)
