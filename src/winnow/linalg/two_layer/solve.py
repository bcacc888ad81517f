"""Solve: the public verb; a method's name becomes its object here.   (floor 2 · linalg)"""

import os
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from winnow.base.errors import UsageError
from winnow.base.rng import SEED_LIMIT
from winnow.linalg.two_layer.assumptions import Assumptions, assumptions_at
from winnow.linalg.two_layer.damped import Damped
from winnow.linalg.two_layer.descent import Options, Step
from winnow.linalg.two_layer.full import FixedWeights, Full
from winnow.linalg.two_layer.newton_cg import NewtonCg
from winnow.linalg.two_layer.problem import Point, checked_problem, real_array
from winnow.linalg.two_layer.sketch import Sketched

METHODS = MappingProxyType(
    {each.name: each for each in (Damped(), NewtonCg(), Full(), Sketched(), FixedWeights())}
)


@dataclass(frozen=True)
class Solution:
    """Where a method ended: `reason` says why in a sentence, `history` has one `Step` per accepted step.

    `gradient_norm` is that of the gradient; at a corner of the loss, of its smallest generalised gradient.
    """

    x: Float[np.ndarray, " M"]
    loss: float
    gradient_norm: float
    converged: bool
    reason: str
    method: str
    history: tuple[Step, ...]
    start: Point

    @property
    def kink_crossings(self) -> int:
        """How often an output was switched on or off on the way."""
        return sum(step.kink_crossings for step in self.history)

    @cached_property
    def assumptions(self) -> Assumptions:
        """Whether the local theorem applies at x0. Computed when asked for: a Gram matrix of A1 and of A2."""
        return assumptions_at(self.start)


def two_layer(  # noqa: PLR0913 (a public verb: the names its users expect)
    A1: object,
    A2: object,
    b: object,
    w: object = 0.0,
    *,
    method: str = "lm",
    x0: object | None = None,
    tol: float = 1e-8,
    max_steps: int = 200,
    rng: int = 0,
    threads: int | None = None,
) -> Solution:
    """Descend to a point where the gradient of the two-layer loss has norm at most `tol`, or say why not.

    A1 [N M], A2 [outputs N], b [outputs], w [N] or one number, x0 [M] (left out: zeros). Arithmetic is
    float64; `rng` seeds what is drawn, equal seeds give equal results.

    lm          trust region with the whole Hessian; for any w and any start. N M (M + outputs) + M^3 a step
    newton_cg   Hessian products, preconditioned by a sampled Hessian; for large M. 10 to 100 passes a step
    full        Newton's method with a line search
    sketch      Newton's method with the sampled Hessian alone; for large w, linear convergence
    w2          ``A1^T W^2 A1`` in place of the Hessian, factored once; for large w, linear convergence

    The same bits for any `threads`; by lm, whose decomposition of an M x M matrix is LAPACK's, up to M of
    about 60. From there the BLAS's own threads may change the last ones.

    The point found is stationary, seldom the lowest: the loss is not convex unless w is large. Void at
    corners of the ReLU, where no gradient vanishes; `reason` names them. Raises UsageError for arrays that
    are empty, not finite, not real or of shapes that do not fit, for an unknown method and for options out of
    range.
    """
    problem = checked_problem(A1, A2, b, w, threads or len(os.sched_getaffinity(0)))
    if method not in METHODS:
        raise UsageError(f"method is {method!r}, expected one of {', '.join(METHODS)}.")
    start = problem.at(_checked_start(x0, problem.A1.shape[1]))
    if not start.is_finite:
        raise UsageError("The loss at x0 overflows float64; scale A1, A2, b, w or x0 down.")
    run = METHODS[method].run(start, _checked_options(tol, max_steps, rng))
    end = run.point
    return Solution(
        x=end.x,
        loss=end.loss,
        gradient_norm=end.gradient_norm if run.remaining is None else run.remaining,
        converged=run.converged,
        reason=run.reason,
        method=method,
        history=run.steps,
        start=start,
    )


def _checked_start(x0: object | None, n_columns: int) -> Float[np.ndarray, " M"]:
    start = np.zeros(n_columns) if x0 is None else real_array("x0", x0, 1)
    if len(start) != n_columns:
        raise UsageError(f"x0 has {len(start)} entries, A1 has {n_columns} columns; expected one per column.")
    return start.copy()


def _checked_options(tol: float, max_steps: int, rng: int) -> Options:
    if not 0.0 <= tol < np.inf:
        raise UsageError(f"tol is {tol}, expected a finite number of at least 0.")
    if max_steps < 0:
        raise UsageError(f"max_steps is {max_steps}, expected at least 0.")
    if not 0 <= rng < SEED_LIMIT:
        raise UsageError(f"rng is {rng}, expected a seed 0 <= rng < 2**63.")
    return Options(float(tol), int(max_steps), int(rng))
