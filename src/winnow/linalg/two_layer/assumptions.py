"""Assumptions: whether the local theorem speaks about this problem and this start.   (floor 2 · linalg)

With R the largest of ||A1||, ||A2||, ||b|| (2-norms; the softmax is globally Lipschitz, so no exp(R)
appears):

    min w^2 >= 9 R^2  + l / sigma_min(A1)^2     H >= l I everywhere
    min w^2 >= 99 R^2 + l / sigma_min(A1)^2     W^2 is within a tenth of B + W^2
    M = 15 R^5                                  Lipschitz constant of H inside one pattern of the ReLU
    M |x0 - x*| <= l / 10                       from there the error at least halves in each step

Constants derived here, after arXiv:2311.15390 (abstract). Does not show that anything was fitted: a w this
large pulls x to 0, and the loss there is that at x = 0 to many digits.
"""

from dataclasses import dataclass

import numpy as np

from winnow.linalg.two_layer.kinks import pattern_radius
from winnow.linalg.two_layer.problem import Point

DEFINITE, SANDWICH, LIPSCHITZ = 9.0, 99.0, 15.0
APPLIES = "The local theorem applies at x0; a w this large pulls x to 0 and leaves little to fit."


@dataclass(frozen=True)
class Assumptions:
    """What the local theorem needs at x0, in numbers; `sentence` says whether it applies and why.

    `distance_bound` bounds ``|x0 - x*|`` by ``|gradient| / l`` where H >= l I; infinite where it is not.
    """

    R: float
    sigma_min: float
    least_curvature: float  # l
    lipschitz: float  # M
    basin_radius: float  # l / (10 M)
    pattern_radius: float
    distance_bound: float
    is_sandwiched: bool
    applies: bool
    sentence: str


def assumptions_at(point: Point) -> Assumptions:
    """Return the report at `point`. Costs a Gram matrix of A1 and one of A2, on its smaller side."""
    problem = point.problem
    largest, smallest = _extreme_singular(problem.A1)
    sigma_min = smallest if problem.A1.shape[0] >= problem.A1.shape[1] else 0.0
    R = max(largest, _extreme_singular(problem.A2)[0], float(np.linalg.norm(problem.b)))
    least = float(problem.w2.min())
    curvature = (least - DEFINITE * R**2) * sigma_min**2
    lipschitz = LIPSCHITZ * R**5
    basin = max(curvature, 0.0) / (10.0 * lipschitz) if lipschitz else np.inf
    distance = point.gradient_norm / curvature if curvature > 0.0 else np.inf
    pattern = pattern_radius(point, largest)
    missing = _missing(curvature, least, R, distance, basin, pattern)
    return Assumptions(
        R=R,
        sigma_min=sigma_min,
        least_curvature=curvature,
        lipschitz=lipschitz,
        basin_radius=basin,
        pattern_radius=pattern,
        distance_bound=distance,
        is_sandwiched=least > SANDWICH * R**2,
        applies=not missing,
        sentence=f"The local theorem does not apply at x0: {missing}." if missing else APPLIES,
    )


def _missing(curvature: float, least: float, R: float, distance: float, basin: float, pattern: float) -> str:
    """Return the first condition that fails, in words; empty if none does."""
    if curvature <= 0.0:
        return (
            f"min w^2 = {least:.3g} should exceed 9 R^2 = {DEFINITE * R**2:.3g}, and A1 have full column rank"
        )
    if distance > basin:
        return f"x* may be {distance:.1e} away, the basin reaches {basin:.1e}"
    # In a ball of twice that radius the loss then has its one minimum, if the pattern stays the same in it.
    if 2.0 * distance > pattern:
        return f"an output may switch within {pattern:.1e}, x* may be {distance:.1e} away"
    return ""


def _extreme_singular(matrix: np.ndarray) -> tuple[float, float]:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    squares = np.linalg.eigvalsh(tall.T @ tall)
    return float(np.sqrt(max(squares[-1], 0.0))), float(np.sqrt(max(squares[0], 0.0)))
