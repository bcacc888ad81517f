"""Certified: how far a solution may be from the best, judged by all of A.   (floor 2 · linalg)

This reads every row and is no part of the quantum algorithm: it checks it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from winnow.kernels.row_sketch import RowPasses
from winnow.linalg.gate import Problem, check_finite
from winnow.linalg.refine import certificate, evaluate, is_exact
from winnow.linalg.triangle import EPS, Triangle, exact, truncated


@dataclass(frozen=True)
class Verdict:
    """``|A x - b|^2 + ridge |x|^2 <= (1 + eps) min`` for all right sides; or residuals that are rounding."""

    eps: float
    is_exact: bool


@dataclass(frozen=True)
class Certifier:
    """The triangle of A itself, in which nothing is random: its certificate is the true excess."""

    problem: Problem
    triangle: Triangle

    def judge(self, x: Float64[np.ndarray, "B D"]) -> Verdict:
        """Return the verdict on `x`, one solution per right side. One pass over A."""
        point = evaluate(self.problem, x)
        w = np.square(self.triangle.solve_transposed(point.gradient)).sum(axis=1)
        exact = is_exact(self.triangle, point)
        eps = np.where(exact, 0.0, certificate(self.triangle, w, point.objective))
        return Verdict(float(eps.max()), bool(exact.all()))


def certifier(problem: Problem, A: Float64[np.ndarray, "N D"], passes: RowPasses) -> Certifier:
    """Return the certifier of a dense problem, once N D^2 operations. Raises UsageError for NaN."""
    gram = problem.rows.gram()
    if not np.isfinite(gram).all():
        check_finite(problem.rows)
    whole = exact(A, gram, problem.ridge, passes)
    if np.isinf(whole.cond):  # by QR, which may have found columns that depend on each other
        whole = truncated(whole, EPS * max(A.shape))
    return Certifier(problem, whole)
