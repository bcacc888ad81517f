"""Full: Newton's method with the whole Hessian, or with the weights' part of it.   (floor 2 · linalg)"""

from dataclasses import dataclass
from typing import ClassVar, final

from winnow.base.errors import UsageError
from winnow.linalg.two_layer.descent import Options, Proposal, Run, line_search_descent
from winnow.linalg.two_layer.problem import Point


@final
@dataclass(frozen=True)
class Full:
    """``x - (H + damping I)^-1 gradient``, damping 0 wherever H is definite.

    N M (M + outputs) + M^3 / 3 operations a step, and M^3 / 3 more per damping tried.
    """

    name: ClassVar[str] = "full"

    def run(self, start: Point, options: Options) -> Run:
        """Descend from `start` until `options` say stop or no step lowers the loss."""
        return line_search_descent(start, self._propose, options)

    def _propose(self, point: Point, _: int) -> Proposal:
        products = point.problem.products
        factor, damping = products.definite_factor(point.hessian())
        return Proposal(products.descent(factor, point.gradient), damping)


@final
@dataclass(frozen=True)
class FixedWeights:
    """``x - (A1^T W^2 A1)^-1 gradient``; two passes over A1 and A2 a step.

    Where ``w_i^2 >= 99 R^2 + l / sigma_min(A1)^2`` the matrix is within a tenth of the Hessian and the error
    falls by a constant factor a step; elsewhere the line search still descends, slowly.
    """

    name: ClassVar[str] = "w2"

    def run(self, start: Point, options: Options) -> Run:
        """Descend from `start`; raises UsageError where the matrix is singular."""
        products = start.problem.products
        factor, damping = products.definite_factor(start.problem.weight_gram)
        if damping > 0.0:
            raise UsageError(
                "A1^T W^2 A1, which method='w2' takes for the Hessian, is singular: w has too many zeros or "
                "A1 dependent columns. Give a larger w or use method='lm'."
            )

        def propose(point: Point, _: int) -> Proposal:
            return Proposal(products.descent(factor, point.gradient))

        return line_search_descent(start, propose, options)
