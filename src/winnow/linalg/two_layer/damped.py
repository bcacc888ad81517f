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

from winnow.linalg.two_layer.descent import (
    NOISE,
    Options,
    Run,
    Step,
    finished,
    is_over,
    lowers,
    stalled,
    step_between,
)
from winnow.linalg.two_layer.problem import Point, Problem
from winnow.linalg.two_layer.products import Vector

FIRST_RADIUS = 1.0  # logits, root mean square
SMALLEST_RADIUS = 1e-13
WORST_RATIO, POOR_RATIO, GOOD_RATIO = 1e-4, 0.25, 0.75
SQUARING_LIMIT = 1e6  # condition number above which a Gram matrix has lost what matters
ROUNDS = 60


@final
@dataclass(frozen=True)
class Damped:
    """Levenberg-Marquardt; a step costs one Hessian, N M (M + outputs), and one M^3 decomposition."""

    name: ClassVar[str] = "lm"

    def run(self, start: Point, options: Options) -> Run:
        """Descend from `start` until `options` say stop or no step lowers the loss."""
        basis = logit_basis(start.problem)
        point, steps, radius = start, list[Step](), FIRST_RADIUS
        while not is_over(point, len(steps), options):
            model = _model_at(point, basis)
            while True:
                trial, damping, promised, length = model.step(point, radius)
                is_lower = lowers(point, trial, WORST_RATIO * promised)
                if not is_lower:
                    radius = 0.25 * length
                elif promised > NOISE * abs(point.loss):  # below that a ratio is rounding, no verdict
                    radius = _next_radius(radius, length, (point.loss - trial.loss) / promised, damping)
                if is_lower:
                    break
                if radius < SMALLEST_RADIUS:
                    return stalled(point, steps)
            steps.append(step_between(point, trial, damping, 0))
            point = trial
        return finished(point, steps, options)


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


def best_within(values: Vector, slope: Vector, radius: float) -> tuple[Vector, float]:
    """Return the p that minimises ``slope . p + 1/2 sum values * p^2`` over ``|p| <= radius``; its damping.

    p is ``-slope / (values + damping)`` with the one damping, at least ``-min(values)`` and 0, that is
    complementary to the radius. Where the slope has no part along the lowest value (the hard case) that part
    of p is free and is taken up to the radius.
    """
    floor = max(0.0, -float(values[0]))
    tiny = np.finfo(np.float64).eps * max(float(np.abs(values).max()), float(np.linalg.norm(slope)) / radius)

    def at(damping: float) -> Vector:
        return -slope / np.maximum(values + damping, max(tiny, np.finfo(np.float64).tiny))

    p = at(floor)
    if np.linalg.norm(p) <= radius:
        if floor == 0.0:
            return p, 0.0
        p[0] += np.copysign(np.sqrt(max(radius**2 - float(p @ p), 0.0)), p[0])
        return p, floor
    low, high = floor, floor + float(np.linalg.norm(slope)) / radius
    for _ in range(ROUNDS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if np.linalg.norm(at(middle)) > radius else (low, middle)
    return at(high), high


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
