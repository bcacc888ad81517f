"""Newton-CG: the true Hessian by products, a sampled one to precondition them.   (floor 2 · linalg)"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from winnow.base.rng import keyed
from winnow.linalg.two_layer.descent import Options, Proposal, Run, line_search_descent
from winnow.linalg.two_layer.problem import Point
from winnow.linalg.two_layer.products import Square, Vector
from winnow.linalg.two_layer.sampling import leverage, projected_leverage, sampled_gram

PROJECTIONS = 16
LEAST_ACCURACY = 0.1  # of a CG solve far from the end; towards it the demand grows with the square root
MOST_PRODUCTS = 200


@final
@dataclass(frozen=True)
class NewtonCg:
    """Conjugate gradients on ``H p = -gradient``, as exact as the step deserves, then a line search.

    A product costs two passes over A1 and A2, the preconditioner ``rows_per_column * M^3`` and 16 passes: no
    step costs N M^2. Where CG meets a direction along which the loss bends down, the step ends there.
    """

    name: ClassVar[str] = "newton_cg"
    rows_per_column: int = 12

    def run(self, start: Point, options: Options) -> Run:
        """Descend from `start` until `options` say stop or no step lowers the loss."""
        problem = start.problem
        rows = self.rows_per_column * problem.A1.shape[1]
        factors: list[Square] = []  # the last preconditioner, by which the next step's scores are taken

        def propose(point: Point, step: int) -> Proposal:
            diagonal = point.diagonal()
            if factors:
                scores = projected_leverage(problem, diagonal, factors.pop(), PROJECTIONS, options.seed)
            else:
                scores = leverage(problem, diagonal)
            factor, damping = problem.products.definite_factor(
                sampled_gram(problem, diagonal, scores, rows, keyed(options.seed, step + 1))
            )
            factors.append(factor)
            accuracy = min(LEAST_ACCURACY, math.sqrt(point.gradient_norm / start.gradient_norm))
            direction, products = _conjugate(point, factor, accuracy)
            return Proposal(direction, damping, products)

        return line_search_descent(start, propose, options)


def _conjugate(point: Point, factor: Square, accuracy: float) -> tuple[Vector, int]:
    """Solve ``H p = -gradient`` until the residual, in the preconditioner's norm, fell to `accuracy`."""
    p, residual = np.zeros_like(point.gradient), -point.gradient
    products_of = point.problem.products
    solved = -products_of.descent(factor, residual)
    along, energy = solved, float(residual @ solved)
    enough = accuracy**2 * energy
    for products in range(1, MOST_PRODUCTS + 1):
        bent = point.hessian_times(along)
        curvature = float(along @ bent)
        if curvature <= 0.0:
            return (p if products > 1 else along), products
        step = energy / curvature
        p = p + step * along
        residual = residual - step * bent
        solved = -products_of.descent(factor, residual)
        before, energy = energy, float(residual @ solved)
        if energy <= enough:
            return p, products
        along = solved + (energy / before) * along
    return p, MOST_PRODUCTS
