"""Refine: conjugate gradients behind the triangle; what is reached is measured.   (floor 2 · linalg)

With ``M = inv(R).T (A.T A + ridge) inv(R)`` near the identity, a few steps of conjugate gradients on M solve
for the correction of x. Two such solves, each from a residual computed afresh, reach the backward error of a
QR factorisation (after Epperly's SPIR; construction ours). Every step is one pass over the rows.

Certificate: for any x, ``|A x - b|^2 <= (1 + eps) min``, with ``q = stretch * |inv(R).T A.T r|`` and
``eps = q^2 / (|r|^2 - q^2)``. It holds if the sketch lengthened no vector of the range of A by more than
`stretch`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from winnow.linalg.gate import Problem
from winnow.linalg.triangle import EPS, Triangle

Vectors = Float64[np.ndarray, "B D"]
Numbers = Float64[np.ndarray, " B"]
MOST_STEPS = 100  # of one solve; a sketch of 4 D rows halves the error in each
MOST_LOOPS = 4
SLACK = 0.7  # of eps: what is aimed for, so that the fresh residual seldom asks for another round


@dataclass(frozen=True)
class Point:
    """An x with its gradient ``A.T (b - A x) - ridge x``, its |b - A x|^2 and that plus the ridge's share."""

    x: Vectors
    gradient: Vectors
    squares: Numbers
    objective: Numbers


@dataclass(frozen=True)
class Reached:
    """Where a refinement ended, and the error by which it was judged, per right side."""

    point: Point
    error: Numbers  # backward errors, or eps that is certified
    is_converged: bool


def evaluate(problem: Problem, x: Vectors) -> Point:
    """Return `x` with what one pass says of it."""
    out, squares = problem.rows.normal(x, problem.b)
    return Point(x, -(out + problem.ridge * x), squares, squares + (problem.ridge * x * x).sum(axis=1))


def certificate(triangle: Triangle, w_squares: Numbers, objective: Numbers, rounding: float = EPS) -> Numbers:
    """Return the certified eps of each right side: infinity where nothing can be said.

    What rounding may hide of w, up to ``rounding * cond * |r|``, is added to it.
    """
    hidden = rounding * min(triangle.kept_cond, 1 / EPS) * np.sqrt(objective)
    q = np.square(triangle.stretch * (np.sqrt(w_squares) + hidden))
    with np.errstate(divide="ignore", invalid="ignore"):
        eps = np.where(q < objective, q / (objective - q), np.inf)
    return np.where(q == 0, 0.0, eps)


def to_eps(problem: Problem, triangle: Triangle, start: Point, eps: float, *, verify: bool = True) -> Reached:
    """Return a point whose certified eps is at most `eps`, or the best one that was reached.

    Steps are counted on by recurrences, and the end is judged by a fresh pass. A residual of the size of
    rounding errors cannot be certified relative to itself; there the backward error decides.
    """
    point = start
    error = _certified(triangle, point)
    for _ in range(MOST_LOOPS):
        if (error <= eps).all() or is_exact(triangle, point).all():
            break
        before, objective = error, point.objective

        def is_done(
            left: Numbers, gained: Numbers, rows: np.ndarray, from_: Numbers = objective
        ) -> np.ndarray:
            return certificate(triangle, left, np.maximum(from_[rows] - gained, 0.0), 0.0) <= SLACK * eps

        y, gained = _gradients(problem, triangle, triangle.solve_transposed(point.gradient), is_done)
        x = point.x + triangle.solve(y)
        if not verify:
            return Reached(Point(x, point.gradient, point.squares - gained, objective - gained), error, True)
        fresh = evaluate(problem, x)
        point = _better(point, fresh, error, _certified(triangle, fresh))
        error = _certified(triangle, point)
        if (error >= before).all():
            break
    done = (error <= eps) | is_exact(triangle, point)
    return Reached(point, error, bool(done.all()))


def to_rounding(problem: Problem, triangle: Triangle, start: Point) -> Reached:
    """Return a point whose backward error is at the level of rounding, or the best one that was reached."""
    point = start
    error = triangle.backward_error(point.x, point.gradient, point.objective)
    for _ in range(MOST_LOOPS):
        if (error <= EPS / 4).all():
            break
        c = triangle.solve_transposed(point.gradient)
        floor = np.square(EPS * np.linalg.norm(c, axis=1))

        def is_done(left: Numbers, gained: Numbers, rows: np.ndarray, floor: Numbers = floor) -> np.ndarray:
            return left <= floor[rows]

        y, _ = _gradients(problem, triangle, c, is_done)
        fresh = evaluate(problem, point.x + triangle.solve(y))
        now = triangle.backward_error(fresh.x, fresh.gradient, fresh.objective)
        point, before, error = _better(point, fresh, error, now), error, np.minimum(error, now)
        if (error > before / 2).all():
            break
    return Reached(point, error, bool((error <= max(8 * EPS, 2 * triangle.dropped)).all()))


Done = Callable[[Numbers, Numbers, np.ndarray], np.ndarray]


def _gradients(problem: Problem, triangle: Triangle, c: Vectors, is_done: Done) -> tuple[Vectors, Numbers]:
    """Solve ``M y = c`` for each row of c until `is_done` says so; return y and what |r|^2 has fallen by.

    Finished rows are passed over no more. `is_done(squares of what is left, what |r|^2 has fallen by, numbers
    of the rows)`.
    """
    y, gained = np.zeros(c.shape), np.zeros(len(c))
    rows: np.ndarray = np.flatnonzero(_squares(c) > 0)
    left, p = c[rows], c[rows]
    squares = _squares(left)
    for _ in range(MOST_STEPS):
        if not len(rows):
            break
        q = triangle.solve(p)
        out, energy = problem.rows.normal(q, None)
        m = triangle.solve_transposed(out + problem.ridge * q)
        energy = energy + (problem.ridge * q * q).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(energy > 0, squares / energy, 0.0)
        y[rows] += step[:, None] * p
        gained[rows] += step * squares
        left = left - step[:, None] * m
        before = squares
        squares = _squares(left)
        p = left + (squares / np.where(before > 0, before, 1.0))[:, None] * p
        is_over: np.ndarray = is_done(squares, gained[rows], rows) | (squares == 0) | (energy <= 0)
        going: np.ndarray = np.flatnonzero(np.isfinite(squares) & ~is_over)
        rows, left, p = rows[going], left[going], p[going]
        squares = squares[going]
    y[~np.isfinite(y).all(axis=1)] = 0.0
    return y, gained


def _squares(vectors: Vectors) -> Numbers:
    return np.square(vectors).sum(axis=1)


def _certified(triangle: Triangle, point: Point) -> Numbers:
    w = triangle.solve_transposed(point.gradient)
    return certificate(triangle, _squares(w), point.objective)


def is_exact(triangle: Triangle, point: Point) -> Bool[np.ndarray, " B"]:
    """Say where the residual itself is a rounding error."""
    lengths = triangle.lengths()
    size = np.linalg.norm(point.x * lengths, axis=1)
    return np.sqrt(point.objective) <= 4 * EPS * np.sqrt(len(lengths)) * size


def _better(old: Point, new: Point, old_error: Numbers, new_error: Numbers) -> Point:
    """Return, for each right side, the point of the smaller error."""
    take = new_error < old_error
    return Point(
        np.where(take[:, None], new.x, old.x),
        np.where(take[:, None], new.gradient, old.gradient),
        np.where(take, new.squares, old.squares),
        np.where(take, new.objective, old.objective),
    )
