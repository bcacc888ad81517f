"""Sampling: a few rows of A1 in place of all, by their leverage.   (floor 2 · linalg)

    A1^T D~ A1  stands for  A1^T D A1     row i kept with chance p_i = min(1, rows * score_i / sum of scores),
                                          and then counted 1 / p_i times

The leverage score of row i is ``D_i a_i^T (A1^T D A1)^-1 a_i``; scores sum to the rank of A1. With exact
scores and ``rows >= 3 M ln(2 M / failure) / accuracy^2`` the sampled matrix lies within ``1 +- accuracy`` of
the whole one, in every direction, with probability at least ``1 - failure`` (matrix Chernoff bound: each kept
row adds at most ``score / p`` of the whole).
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.linalg import cholesky, solve_triangular

from winnow.base.rng import keyed
from winnow.linalg.two_layer.problem import Square, Vector

Rows = Float[np.ndarray, "N M"]
FIRST_JITTER = 1e-14  # of the largest diagonal entry


def rows_for(n_columns: int, accuracy: float, failure: float) -> int:
    """Return how many rows keep every direction within ``1 +- accuracy`` with chance ``1 - failure``."""
    return math.ceil(3.0 * n_columns * math.log(2.0 * n_columns / failure) / accuracy**2)


def definite_factor(matrix: Square) -> tuple[Square, float]:
    """Return the upper Cholesky factor of ``matrix + damping I`` and the first damping that allows it.

    0, then ``1e-14`` of the largest diagonal entry, then tenfold. M^3 / 3 operations per try.
    """
    damping, unit = 0.0, np.eye(len(matrix))
    scale = max(float(np.abs(np.diagonal(matrix)).max()), np.finfo(np.float64).tiny)
    while True:
        try:
            return cholesky(matrix + damping * unit, check_finite=False), damping
        except np.linalg.LinAlgError:
            damping = 10.0 * damping if damping else FIRST_JITTER * scale


def leverage(A1: Rows, diagonal: Vector) -> Vector:
    """Return the exact leverage scores of ``D^(1/2) A1``, slightly damped where it is singular.

    2 N M^2 operations.
    """
    factor, _ = definite_factor((A1 * diagonal[:, None]).T @ A1)
    solved = A1 @ solve_triangular(factor, np.eye(len(factor)), check_finite=False)
    return diagonal * np.einsum("im,im->i", solved, solved)


def projected_leverage(A1: Rows, diagonal: Vector, factor: Square, n_vectors: int, seed: int) -> Vector:
    """Return leverage scores by a stand-in for the Gram matrix's upper factor R, randomly projected.

    ``D_i |a_i^T R^-1 G|^2`` with G a normal M x n_vectors matrix: one score is off by a factor of about
    ``1 +- sqrt(2 / n_vectors)``. N M n_vectors operations.
    """
    drawn = keyed(seed, 0).standard_normal((len(factor), n_vectors)) / math.sqrt(n_vectors)
    projected = A1 @ solve_triangular(factor, drawn, check_finite=False)
    return diagonal * np.einsum("ij,ij->i", projected, projected)


def sampled_gram(
    A1: Rows, diagonal: Vector, scores: Vector, rows: int | float, draws: np.random.Generator
) -> Square:
    """Return ``A1^T D~ A1`` from about `rows` rows of A1, each kept or not by a chance of its own.

    Unbiased for any scores that are positive where D is. 2 N draws and rows * M^2 operations.
    """
    total = float(scores.sum())
    chance = np.minimum(1.0, rows * scores / total) if total > 0.0 else np.ones_like(scores)
    kept = np.flatnonzero(draws.random(len(scores)) < chance)
    part = A1[kept]
    return (part * (diagonal[kept] / chance[kept])[:, None]).T @ part
