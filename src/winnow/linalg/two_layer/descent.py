"""Descent: what all methods share: steps, why they end, and the line search.   (floor 2 · linalg)"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from winnow.linalg.two_layer.kinks import nearest_kinks
from winnow.linalg.two_layer.problem import Point
from winnow.linalg.two_layer.products import Vector

ARMIJO = 1e-4  # share of the fall promised by the slope that a step must bring
NOISE = 1e-12  # a change of the loss below this share of it says nothing
HALVINGS = 50
ROUNDS = 60


@dataclass(frozen=True)
class Options:
    """When to stop, and the seed of every draw."""

    tol: float
    max_steps: int
    seed: int


@dataclass(frozen=True)
class Step:
    """One accepted step: where it led, how long it was, what it cost, which kinks it crossed."""

    loss: float
    gradient_norm: float
    step_norm: float
    damping: float
    hessian_products: int
    kink_crossings: int


@dataclass(frozen=True)
class Run:
    """Where a method ended, the steps on the way, and why there are no more."""

    point: Point
    steps: tuple[Step, ...]
    converged: bool
    reason: str
    remaining: float | None = None  # norm of the generalised gradient, of runs that end at a corner


@dataclass(frozen=True)
class Proposal:
    """A direction, the damping that shaped it (0: none), and the Hessian products it cost."""

    direction: Vector
    damping: float = 0.0
    hessian_products: int = 0


def line_search_descent(start: Point, propose: Callable[[Point, int], Proposal], options: Options) -> Run:
    """Follow ``propose(point, step number)`` with steps 1, 1/2, 1/4, ..., the first that lowers the loss."""
    point, steps = start, list[Step]()
    while not is_over(point, len(steps), options):
        proposal = propose(point, len(steps))
        found = next((p for p in _backtracking(point, proposal.direction) if p is not None), None)
        if found is None:
            return stalled(point, steps)
        steps.append(step_between(point, found, proposal.damping, proposal.hessian_products))
        point = found
    return finished(point, steps, options)


def _backtracking(point: Point, direction: Vector) -> Iterator[Point | None]:
    slope = float(point.gradient @ direction)
    for halving in range(HALVINGS):
        share = 0.5**halving
        trial = point.problem.at(point.x + share * direction)
        yield trial if lowers(point, trial, -ARMIJO * share * slope) else None


def lowers(point: Point, trial: Point, wanted: float) -> bool:
    """Say whether `trial` lies at least `wanted` below `point`.

    Where `wanted` drowns in the rounding of the loss, a smaller gradient decides in its place.
    """
    if not trial.is_finite or wanted < 0.0:
        return False
    if wanted < NOISE * abs(point.loss):
        no_higher = trial.loss <= point.loss + NOISE * abs(point.loss)
        return no_higher and trial.gradient_norm < point.gradient_norm
    return trial.loss <= point.loss - wanted


def step_between(point: Point, trial: Point, damping: float, hessian_products: int) -> Step:
    """Return the record of the step from `point` to `trial`."""
    return Step(
        loss=trial.loss,
        gradient_norm=trial.gradient_norm,
        step_norm=float(np.linalg.norm(trial.x - point.x)),
        damping=damping,
        hessian_products=hessian_products,
        kink_crossings=int(np.count_nonzero(trial.is_on != point.is_on)),
    )


def is_over(point: Point, n_steps: int, options: Options) -> bool:
    """Say whether the gradient is small enough, or the steps are used up."""
    return point.gradient_norm <= options.tol or n_steps >= options.max_steps


def finished(point: Point, steps: list[Step], options: Options) -> Run:
    """Return the run that `is_over` ended, and say in a sentence which of its reasons it was."""
    norm = point.gradient_norm
    if norm > options.tol:
        reason = f"max_steps = {options.max_steps} are used up at gradient norm {norm:.1e}: allow more."
        return Run(point, tuple(steps), False, reason)
    if point.loss > 0.0 and not point.is_on.any() and not point.problem.w.any():
        reason = (
            "Every output is off and w is 0, so the gradient is 0 and nothing was fitted: try another x0."
        )
        return Run(point, tuple(steps), False, reason)
    reason = f"The gradient norm is {norm:.1e}, within tol = {options.tol:g}."
    return Run(point, tuple(steps), True, reason)


def stalled(point: Point, steps: list[Step]) -> Run:
    """Return the run of a method that found no lower point, and name what holds it there."""
    norm, rounding = point.gradient_norm, point.gradient_rounding
    kinks = nearest_kinks(point)
    if norm <= rounding:
        reason = f"The gradient norm {norm:.1e} is below its own rounding error, {rounding:.1e}: raise tol."
    elif len(kinks):
        reason = f"The loss has a corner here, where the ReLU of {_named(kinks)} switches: try method='lm'."
    else:
        reason = f"No step lowers the loss any further, at gradient norm {norm:.1e}: try method='lm'."
    return Run(point, tuple(steps), False, reason)


def cornered(
    point: Point, steps: list[Step], remaining: float, kinks: Int64[np.ndarray, " kinks"], options: Options
) -> Run:
    """Return the run that ended on a crease with a generalised gradient of norm `remaining`."""
    if not len(kinks):
        return stalled(point, steps)
    where = f"The loss has a corner here, where the ReLU of {_named(kinks)} switches"
    within = f"with slopes between its two sides the gradient norm is {remaining:.1e}"
    if remaining <= options.tol:
        reason = f"{where}; {within}, within tol = {options.tol:g}."
        return Run(point, tuple(steps), True, reason, remaining)
    return Run(point, tuple(steps), False, f"{where}; {within}: try another x0.", remaining)


def _named(kinks: Int64[np.ndarray, " kinks"]) -> str:
    return f"output {', '.join(map(str, kinks[:5]))}{', ...' if len(kinks) > 5 else ''}"


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
