"""Problems for the two-layer tests: everyday ones, and those of the local theorem."""

import numpy as np

from winnow.linalg.two_layer.assumptions import DEFINITE, SANDWICH
from winnow.linalg.two_layer.problem import Point, Problem, checked_problem


def everyday(seed: int, n_rows: int = 83, n_columns: int = 7, n_outputs: int = 5, w: float = 0.1) -> Problem:
    """A softmax fitted to what another one gave, with noise; targets at least 0, as a ReLU can meet them."""
    draws = np.random.default_rng(seed)
    A1, A2 = draws.normal(size=(n_rows, n_columns)), draws.normal(size=(n_outputs, n_rows))
    hidden = checked_problem(A1, A2, np.zeros(n_outputs), 0.0).at(draws.normal(size=n_columns))
    b = np.abs(np.maximum(hidden.h, 0.0) + 0.05 * draws.normal(size=n_outputs))
    return checked_problem(A1, A2, b, w * draws.uniform(0.5, 1.5, n_rows))


def bounded(seed: int, R: float, *, weights: float = 0.0, least: float = 1.0) -> Problem:
    """||A1||, ||A2||, ||b|| at most R, one of them R; ``w^2 = weights R^2 + least / sigma_min(A1)^2``."""
    draws = np.random.default_rng(seed)
    n_rows, n_columns, n_outputs = draws.integers(12, 60), draws.integers(2, 7), draws.integers(1, 9)
    A1, A2 = draws.normal(size=(n_rows, n_columns)), draws.normal(size=(n_outputs, n_rows))
    b = draws.normal(size=n_outputs)
    A1, A2, b = (scaled(a, R * draws.uniform(0.5, 1.0)) for a in (A1, A2, b))
    A1 = scaled(A1, R)
    smallest = np.linalg.svd(A1, compute_uv=False)[-1]
    return checked_problem(A1, A2, b, np.sqrt(weights * R**2 + least / smallest**2) if weights else 0.0)


def scaled(array: np.ndarray, norm: float) -> np.ndarray:
    return array * (norm / np.linalg.norm(array, 2))


def definite(seed: int, R: float, least: float = 1.0) -> Problem:
    return bounded(seed, R, weights=DEFINITE, least=least)


def sandwiched(seed: int, R: float, least: float = 1.0) -> Problem:
    return bounded(seed, R, weights=SANDWICH, least=least)


def somewhere(problem: Problem, seed: int, size: float = 1.0) -> Point:
    draws = np.random.default_rng(seed)
    return problem.at(size * draws.normal(size=problem.A1.shape[1]))


def inner_matrix(point: Point) -> np.ndarray:
    """B of the Hessian ``A1^T B A1``, N x N: what the code never forms."""
    f, q = point.f, point.q
    P = np.diag(f) - np.outer(f, f)
    on = point.problem.A2[point.is_on]
    curvature = np.diag(q) - np.outer(q, f) - np.outer(f, q)
    return P @ on.T @ on @ P + curvature + np.diag(point.problem.w2)
