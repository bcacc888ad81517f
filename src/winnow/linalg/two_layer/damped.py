"""Damped: Levenberg-Marquardt with a trust region, the method for real use.   (floor 2 · linalg)

    minimise  gradient . p + 1/2 p . H p   over   |A1 p|_rms <= radius,   so  p = -(H + damping G)^-1 gradient

The radius is measured in logits: G is ``A1^T A1 / N``, so no scaling of columns and no change of basis
matters, and directions that move no logit are left alone. H is the whole Hessian; where it is indefinite the
damping makes it definite, and the step still goes down.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float

from winnow.linalg.two_layer.corners import slide
from winnow.linalg.two_layer.descent import (
    NOISE,
    Options,
    Run,
    Step,
    best_within,
    cornered,
    finished,
    is_over,
    lowers,
    step_between,
)
from winnow.linalg.two_layer.problem import Point, Problem

FIRST_RADIUS = 1.0  # logits, root mean square
SMALLEST_RADIUS = 1e-13
WORST_RATIO, POOR_RATIO, GOOD_RATIO = 1e-4, 0.25, 0.75
SQUARING_LIMIT = 1e6  # condition number above which a Gram matrix has lost what matters


@final
@dataclass(frozen=True)
class Damped:
    """Levenberg-Marquardt; a step costs one Hessian, N M (M + outputs), and one M^3 decomposition.

    Where outputs with negative targets switch and no smooth step helps, it goes on along their crease.
    """

    name: ClassVar[str] = "lm"

    def run(self, start: Point, options: Options) -> Run:
        """Descend from `start` until `options` say stop or no step lowers the loss."""
        basis = logit_basis(start.problem)
        point, steps, radius = start, list[Step](), FIRST_RADIUS
        while not is_over(point, len(steps), options):
            trial, damping, radius = _smooth_step(point, basis, radius)
            if trial is None:
                slid = slide(point, basis, options.tol)
                if slid.remaining <= options.tol or slid.point.loss >= point.loss * (1.0 - NOISE):
                    return cornered(slid.point, steps, slid.remaining, slid.kinks, options)
                trial, radius = slid.point, FIRST_RADIUS
            steps.append(step_between(point, trial, damping, 0))
            point = trial
        return finished(point, steps, options)


def _smooth_step(
    point: Point, basis: Float[np.ndarray, "M rank"], radius: float
) -> tuple[Point | None, float, float]:
    """Return a lower point, its damping and the next radius; None where no radius gives one."""
    model = _model_at(point, basis)
    while radius >= SMALLEST_RADIUS:
        trial, damping, promised, length = model.step(point, radius)
        if lowers(point, trial, WORST_RATIO * promised):
            if promised > NOISE * abs(point.loss):  # below that a ratio is rounding, no verdict
                radius = _next_radius(radius, length, (point.loss - trial.loss) / promised, damping)
            return trial, damping, radius
        radius = 0.25 * length
    return None, 0.0, radius


def _next_radius(radius: float, length: float, ratio: float, damping: float) -> float:
    """Trust the model less where it promised too much, more where it kept its word and was held back."""
    if ratio < POOR_RATIO:
        return 0.25 * length
    if ratio > GOOD_RATIO and damping > 0.0:
        return max(radius, 2.0 * length)
    return radius


@dataclass(frozen=True)
class Model:
    """The quadratic model at a point, in the coordinates in which it is a sum of parabolas.

    `directions` [M rank] leads from there to x; each has root mean square 1 in logits, as a step of length 1.
    """

    values: Float[np.ndarray, " rank"]
    slope: Float[np.ndarray, " rank"]
    directions: Float[np.ndarray, "M rank"]

    def step(self, point: Point, radius: float) -> tuple[Point, float, float, float]:
        """Return where the best step within `radius` leads, its damping, promised fall and length."""
        p, damping = best_within(self.values, self.slope, radius)
        promised = -float(self.slope @ p + 0.5 * (self.values * p) @ p)
        trial = point.problem.at(point.x + self.directions @ p)
        return trial, damping, max(promised, np.finfo(np.float64).tiny), float(np.linalg.norm(p))


def _model_at(point: Point, basis: Float[np.ndarray, "M rank"]) -> Model:
    values, vectors = np.linalg.eigh(basis.T @ point.hessian() @ basis)
    directions = basis @ vectors
    return Model(values, directions.T @ point.gradient, directions)


def logit_basis(problem: Problem) -> Float[np.ndarray, "M rank"]:
    """Return T with ``T^T A1^T A1 T / N = I``, its columns spanning the row space of A1.

    By the Gram matrix, one N M^2 product; where that is too ill-conditioned, by a QR factorisation.
    """
    A1, n_rows = problem.A1, problem.A1.shape[0]
    squares, vectors = np.linalg.eigh(problem.products.gram_of(A1))
    if squares[0] > squares[-1] / SQUARING_LIMIT**2 * 1e4:
        return vectors * np.sqrt(n_rows / squares)
    _, singular, transposed = np.linalg.svd(np.linalg.qr(A1, mode="r"))
    is_kept = singular > max(A1.shape) * np.finfo(np.float64).eps * singular[0]
    return transposed[: len(singular)][is_kept].T * (np.sqrt(n_rows) / singular[is_kept])
