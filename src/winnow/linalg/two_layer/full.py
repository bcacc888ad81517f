"""Full: Newton's method with the whole Hessian.   (floor 2 · linalg)"""

from dataclasses import dataclass
from typing import ClassVar, final

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
