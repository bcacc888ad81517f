"""Sketch: Newton steps with a Hessian of sampled rows.   (floor 2 · linalg)

After arXiv:2311.15390 (abstract), construction ours: D is the diagonal of B, ``A1^T D~ A1`` stands for the
Hessian.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from winnow.base.rng import keyed
from winnow.linalg.two_layer.descent import Options, Proposal, Run, line_search_descent
from winnow.linalg.two_layer.problem import Point
from winnow.linalg.two_layer.products import Vector
from winnow.linalg.two_layer.sampling import leverage, rows_for, sampled_gram

MOST_DRIFT = 2.0  # scores are taken anew when the diagonal has moved further from theirs than this factor


@final
@dataclass(frozen=True)
class Sketched:
    """``x - (A1^T D~ A1)^-1 gradient``, D~ sampled anew each step: errors fall by about ``sqrt(M / rows)``.

    `rows` is the expected number of rows kept, 0 for as many as bring every step's matrix within `accuracy`
    of ``A1^T D A1`` with probability ``1 - failure`` over the whole run. Costs rows * M^2 a step, and 2 N M^2
    when scores are taken. Void outside the regime of large w: there D is not B, and the line search alone
    keeps it going down.
    """

    name: ClassVar[str] = "sketch"
    rows: int = 0
    accuracy: float = 0.25
    failure: float = 0.01

    def run(self, start: Point, options: Options) -> Run:
        """Descend from `start` until `options` say stop or no step lowers the loss."""
        n_columns = start.problem.A1.shape[1]
        rows = self.rows or rows_for(n_columns, self.accuracy, self.failure / max(options.max_steps, 1))
        scores = _Scores(start)

        def propose(point: Point, step: int) -> Proposal:
            diagonal = point.diagonal()
            matrix = sampled_gram(
                point.problem, diagonal, *scores.at_least(diagonal, rows), keyed(options.seed, step)
            )
            factor, damping = point.problem.products.definite_factor(matrix)
            return Proposal(point.problem.products.descent(factor, point.gradient), damping)

        return line_search_descent(start, propose, options)


class _Scores:
    """Leverage scores of an earlier diagonal, which bound those of the present one.

    If every D_i moved by a factor in [a, b], scores moved by at most b / a; drawing b / a times the rows
    then keeps the guarantee without a look at A1.
    """

    def __init__(self, start: Point) -> None:
        self._problem = start.problem
        self._diagonal: Vector = np.zeros(0)
        self._scores: Vector = np.zeros(0)

    def at_least(self, diagonal: Vector, rows: int) -> tuple[Vector, float]:
        """Return scores, and how many rows to draw by them."""
        drift = np.inf
        if len(self._diagonal) and diagonal.min() > 0.0 and self._diagonal.min() > 0.0:
            moved = diagonal / self._diagonal
            drift = float(moved.max() / moved.min())
        if drift <= MOST_DRIFT:
            return self._scores, rows * drift
        self._diagonal, self._scores = diagonal, leverage(self._problem, diagonal)
        return self._scores, float(rows)
