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

from winnow.base.rng import keyed
from winnow.linalg.two_layer.problem import Problem
from winnow.linalg.two_layer.products import Square, Vector


def rows_for(n_columns: int, accuracy: float, failure: float) -> int:
    """Return how many rows keep every direction within ``1 +- accuracy`` with chance ``1 - failure``."""
    return math.ceil(3.0 * n_columns * math.log(2.0 * n_columns / failure) / accuracy**2)


def leverage(problem: Problem, diagonal: Vector) -> Vector:
    """Return the exact leverage scores of ``D^(1/2) A1``, slightly damped where it is singular.

    2 N M^2 operations.
    """
    products = problem.products
    factor, _ = products.definite_factor(products.gram(diagonal))
    return diagonal * products.scores(products.solve(factor, np.eye(len(factor)), both=False))


def projected_leverage(
    problem: Problem, diagonal: Vector, factor: Square, n_vectors: int, seed: int
) -> Vector:
    """Return leverage scores by a stand-in for the Gram matrix's upper factor R, randomly projected.

    ``D_i |a_i^T R^-1 G|^2`` with G a normal M x n_vectors matrix: one score is off by a factor of about
    ``1 +- sqrt(2 / n_vectors)``. N M n_vectors operations.
    """
    drawn = keyed(seed, 0).standard_normal((n_vectors, len(factor))) / math.sqrt(n_vectors)
    return diagonal * problem.products.scores(problem.products.solve(factor, drawn, both=False))


def sampled_gram(
    problem: Problem, diagonal: Vector, scores: Vector, rows: int | float, draws: np.random.Generator
) -> Square:
    """Return ``A1^T D~ A1`` from about `rows` rows of A1, each kept or not by a chance of its own.

    Unbiased for any scores that are positive where D is. N draws and rows * M^2 operations.
    """
    total = float(scores.sum())
    chance = np.minimum(1.0, rows * scores / total) if total > 0.0 else np.ones_like(scores)
    kept = np.flatnonzero(draws.random(len(scores)) < chance)
    root = np.sqrt(diagonal[kept] / chance[kept])
    return problem.products.gram_of(problem.A1[kept] * root[:, None])
