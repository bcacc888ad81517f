"""Corners: descent along the edge where outputs with negative targets switch.   (floor 2 · linalg)

Where such an output i sits at ``h_i = 0`` the loss has a crease, and a smooth model is wrong on one side. Its
slope there is taken as ``t_i * (-b_i)``, t_i in [0, 1] the one of the smallest generalised gradient. With t_i
between its bounds the output is held at 0 and the step is Newton's along the crease; with t_i at a bound it
counts as on or off.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int64

from winnow.linalg.two_layer.descent import NOISE, best_within
from winnow.linalg.two_layer.kinks import generalised, nearest_kinks
from winnow.linalg.two_layer.problem import Point

MOST_SLIDES = 60
INSIDE = 1e-9  # of [0, 1]: nearer to its ends counts as at them
CORRECTIONS = 2  # after each step: the crease is curved
DEPENDENT = 1e-10  # of the largest slope: creases that are no further apart count as one
SMALLEST_RADIUS = 1e-13


@dataclass(frozen=True)
class Slide:
    """Where a descent along creases ended, and the generalised gradient's norm there; `kinks` hold it."""

    point: Point
    remaining: float
    kinks: Int64[np.ndarray, " kinks"]


def slide(point: Point, basis: Float[np.ndarray, "M rank"], tol: float) -> Slide:
    """Descend from a corner along its crease until the generalised gradient is within `tol`, or stuck."""
    kinks = nearest_kinks(point)
    remaining, shares = generalised(point, kinks)
    radius = 1.0
    for _ in range(MOST_SLIDES):
        if not len(kinks) or remaining <= tol:
            break
        trial = _step(point, basis, kinks, shares, radius)
        near = nearest_kinks(trial)
        left, new_shares = generalised(trial, near)
        noise = NOISE * abs(point.loss)
        if trial.loss < point.loss - noise or (trial.loss <= point.loss + noise and left < remaining):
            point, kinks, remaining, shares = trial, near, left, new_shares
            radius = 2.0 * radius
        elif radius < SMALLEST_RADIUS:
            break
        else:
            radius = 0.25 * radius
    return Slide(point, remaining, kinks)


def _step(
    point: Point,
    basis: Float[np.ndarray, "M rank"],
    kinks: Int64[np.ndarray, " kinks"],
    shares: Float[np.ndarray, " kinks"],
    radius: float,
) -> Point:
    """Return where Newton's step of at most `radius` logits along the crease leads, back onto it first."""
    is_held = (shares > INSIDE) & (shares < 1.0 - INSIDE)
    smooth = _with_shares(point, kinks, shares)
    held = kinks[is_held]
    back, along = _crease(point, held, basis)
    hessian = smooth.hessian()
    values, vectors = np.linalg.eigh(along.T @ hessian @ along)
    slope = vectors.T @ (along.T @ (smooth.gradient + hessian @ back))
    p = best_within(values, slope, radius)[0] if len(values) else np.zeros(0)
    trial = point.problem.at(point.x + back + along @ (vectors @ p))
    for _ in range(CORRECTIONS):
        if len(held) and trial.is_finite:
            trial = point.problem.at(trial.x + _crease(trial, held, basis)[0])
    return trial


def _crease(
    point: Point, held: Int64[np.ndarray, " held"], basis: Float[np.ndarray, "M rank"]
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, "M free"]]:
    """Return the shortest way to where the outputs `held` are 0, to first order; the directions along it."""
    if not len(held):
        return np.zeros(len(basis)), basis
    left, singular, transposed = np.linalg.svd(point.output_slopes(held) @ basis)
    rank = int((singular > DEPENDENT * singular[0]).sum())
    back = transposed[:rank].T @ ((left[:, :rank].T @ -point.h[held]) / singular[:rank])
    return basis @ back, basis @ transposed[rank:].T


def _with_shares(
    point: Point, kinks: Int64[np.ndarray, " kinks"], shares: Float[np.ndarray, " kinks"]
) -> Point:
    """Return the point with the slopes of `kinks` as given: what lies between is neither on nor off."""
    h = point.h.copy()
    h[kinks] = np.where(shares >= 1.0 - INSIDE, np.finfo(np.float64).tiny, -1.0)
    forces = np.where(h > 0.0, point.c, 0.0)
    forces[kinks] = -shares * point.problem.b[kinks]
    q, gradient = point.problem.pulled(point.z, point.f, forces)
    return replace(point, h=h, q=q, gradient=gradient)
