"""Sampling: how much each row matters, and least squares from the rows that do.   (floor 2 · linalg)

The leverage score of row i is ``a_i (A.T A + ridge)^-1 a_i``, between 0 and 1: how much of its own label the
fit takes over. The scores add up to the rank, or with a ridge to the effective dimension.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64

from winnow.base.errors import UsageError
from winnow.base.rng import keyed
from winnow.kernels.row_sketch import open_passes
from winnow.linalg.cost import NONZEROS, sketch_height
from winnow.linalg.gate import Matrix, Seed, check_finite, open_rows, ridge_of, seed_of
from winnow.linalg.least_squares import lstsq
from winnow.linalg.result import Result
from winnow.linalg.rows import DenseRows, Rows, Sketch, SparseRows
from winnow.linalg.solvers import in_memory
from winnow.linalg.triangle import EPS, from_gram, from_sketch, truncated

DIRECTIONS = 32  # of sketched scores: their relative standard error is sqrt(2 / 32)
DRAW_DIRECTIONS, DRAW_ROWS = 1, 2  # counters, so that no two uses draw the same numbers
Scores = Float64[np.ndarray, " N"]


def leverage_scores(
    A: Matrix,
    *,
    method: Literal["exact", "sketched"] = "exact",
    ridge: float | np.ndarray = 0.0,
    rng: Seed = 0,
    threads: int | None = None,
) -> Scores:
    """Return the leverage score of every row, its ridge score if `ridge` is above 0.

    exact     3 N D^2 operations in two passes; where the condition is above 1e7, or the rank low, a singular
              value decomposition of a copy of A
    sketched  one pass to sketch and one of 64 N D operations: unbiased up to a factor that lies within
              (1 +- sqrt(D / height))^-2, with a relative standard error of 1/4 per score
    A of deficient rank has the scores of its range. Raises UsageError and ResourceError as `lstsq` does.
    """
    threads = threads or len(os.sched_getaffinity(0))
    if method not in ("exact", "sketched"):
        raise UsageError(f"method is {method!r}, expected exact or sketched.")
    rows, _ = open_rows(A, threads)
    shrink, seed = ridge_of(ridge, rows.shape[1]), seed_of(rng)
    height = sketch_height(rows.shape, 0.1)
    if method == "sketched" and rows.shape[0] > height:
        return _sketched(rows, shrink, Sketch(height, NONZEROS, seed), threads)
    gram = rows.gram()
    if not np.isfinite(gram).all():
        check_finite(rows)
    triangle = from_gram(gram, shrink, open_passes(threads))
    if triangle is None:
        return _decomposed(in_memory(rows), shrink)
    return np.minimum(rows.scores(triangle.solve(np.eye(triangle.rank))), 1.0)


def sample_rows(
    scores: object,
    s: int,
    *,
    scheme: Literal["threshold", "poisson", "iid"] = "threshold",
    uniform_mix: float = 0.1,
    rng: Seed = 0,
) -> tuple[Int64[np.ndarray, " A"], Float64[np.ndarray, " A"]]:
    """Return rows drawn by their scores, ascending, and the weights with which they stand for all.

    Rows of A and b times their weights: ``|W (A x - b)[idx]|^2`` has the mean ``|A x - b|^2``. A row is kept
    with

    threshold  min(1, c score), c such that s rows are expected; rows of high score are kept surely, weight 1
    poisson    min(1, s score / sum): at most s rows are expected
    iid        s draws with replacement, a row that is drawn m times once, with weight sqrt(m / (s p)); fails
               where single rows have leverage near 1
    `uniform_mix` is the share of the probability that is spread evenly, an insurance against wrong scores.
    Raises UsageError for scores that are negative, not finite or all 0.
    """
    given = np.asarray(scores, np.float64)
    if given.ndim != 1 or not len(given) or not (np.isfinite(given) & (given >= 0)).all() or not given.any():
        raise UsageError(f"scores has shape {given.shape}, expected one finite number of 0 or more per row.")
    if isinstance(s, bool) or not isinstance(s, int | np.integer) or s < 1:
        raise UsageError(f"s is {s!r}, expected a whole number of at least 1.")
    if not 0 <= uniform_mix <= 1:
        raise UsageError(f"uniform_mix is {uniform_mix}, expected 0 to 1.")
    n, draw = len(given), keyed(seed_of(rng), DRAW_ROWS)
    shares = (1 - uniform_mix) * (given / given.sum()) + uniform_mix / n
    if scheme == "iid":
        drawn, times = np.unique(draw.choice(n, s, p=shares / shares.sum()), return_counts=True)
        return drawn.astype(np.int64), np.sqrt(times / (s * shares[drawn]))
    if scheme not in ("threshold", "poisson"):
        raise UsageError(f"scheme is {scheme!r}, expected threshold, poisson or iid.")
    kept = np.minimum(1.0, s * shares) if scheme == "poisson" else _thresholded(shares, s)
    chosen = np.flatnonzero(draw.random(n) < kept)
    return chosen, 1 / np.sqrt(kept[chosen])


@dataclass(frozen=True)
class ActiveResult:
    """A solution from some labels: the rows asked for, their weights, the sampled problem's result."""

    x: np.ndarray | torch.Tensor
    rows: Int64[np.ndarray, " A"]
    weights: Float64[np.ndarray, " A"]
    sampled: Result


def active_lstsq(
    A: Matrix,
    labels: Callable[[Int64[np.ndarray, " A"]], object],
    eps: float,
    *,
    ridge: float = 0.0,
    method: Literal["exact", "sketched"] = "exact",
    rng: Seed = 0,
) -> ActiveResult:
    """Return x from 2 D ln D + 2 D / eps labels, asked for once: ``labels(idx)`` gives b[idx].

    Rows are drawn by leverage, thresholded. The loss is expected within 1 + eps of the least one; nothing is
    certified, since that would take all labels: `sampled` is of the sampled problem alone. Reads A two or
    three times. Raises UsageError for labels of another length and for a LinearOperator, whose rows cannot be
    read.
    """
    if not 0 < eps < math.inf:
        raise UsageError(f"eps is {eps}, expected a number above 0.")
    scores = leverage_scores(A, method=method, ridge=ridge, rng=rng)
    rows, _ = open_rows(A, 1)
    n, d = rows.shape
    s = min(n, math.ceil(2 * d * math.log(max(d, 2)) + 2 * d / eps))
    chosen, weights = sample_rows(scores, s, rng=rng)
    given = np.asarray(labels(chosen), np.float64)
    if given.shape[:1] != chosen.shape:
        raise UsageError(
            f"labels gave {given.shape} for {len(chosen)} rows, expected one per row, in their order."
        )
    right = given * weights[:, None] if given.ndim == 2 else given * weights
    found = lstsq(_taken(rows, chosen) * weights[:, None], right, ridge=ridge, rng=rng)
    x = (
        torch.from_numpy(found.x)
        if isinstance(A, torch.Tensor) and isinstance(found.x, np.ndarray)
        else found.x
    )
    return ActiveResult(x, chosen, weights, found)


def _sketched(rows: Rows, ridge: Float64[np.ndarray, " D"], how: Sketch, threads: int) -> Scores:
    passes = open_passes(threads)
    sketched = rows.sketch(how)
    if not np.isfinite(sketched).all():
        check_finite(rows)
    none = np.zeros((how.height, 1))
    triangle, _ = from_sketch(sketched, none, ridge, passes, lambda a: DenseRows(a, passes).gram())
    hidden = EPS * max(rows.shape)
    if triangle.cond > 0.1 / hidden:
        triangle = truncated(triangle, hidden)
    towards = keyed(how.seed, DRAW_DIRECTIONS).standard_normal((DIRECTIONS, triangle.rank))
    return np.minimum(rows.scores(triangle.solve(towards / math.sqrt(DIRECTIONS))), 1.0)


def _decomposed(a: Float64[np.ndarray, "N D"], ridge: Float64[np.ndarray, " D"]) -> Scores:
    tall = np.concatenate([a, np.diag(np.sqrt(ridge))]) if ridge.any() else a
    u, s, _ = np.linalg.svd(tall, full_matrices=False)
    rank = int((s > EPS * max(a.shape) * s[0]).sum())
    return np.square(u[: len(a), :rank]).sum(axis=1)


def _thresholded(shares: Scores, s: int) -> Scores:
    """Return min(1, c shares) with the sum s: the largest are 1, the others share what is left."""
    if s >= len(shares):
        return np.ones(len(shares))
    order = np.sort(shares)[::-1]
    rest = order.sum() - np.concatenate([[0.0], np.cumsum(order)[:-1]])  # of the k-th largest and those below
    c = (s - np.arange(len(order))) / np.maximum(rest, np.finfo(float).tiny)
    surely = int(np.argmax(c * order <= 1))  # the first k for which the k-th largest needs no more than 1
    return np.minimum(1.0, c[surely] * shares)


def _taken(rows: Rows, chosen: Int64[np.ndarray, " A"]) -> Float64[np.ndarray, "A D"]:
    if isinstance(rows, SparseRows):
        return rows.matrix[chosen].toarray()
    if not isinstance(rows, DenseRows):
        raise UsageError("A is a LinearOperator, expected a matrix whose rows can be read.")
    taken = [piece[_within(chosen, first, len(piece))] for first, piece in rows.pieces()]
    return np.concatenate(taken).astype(np.float64)


def _within(chosen: Int64[np.ndarray, " A"], first: int, rows: int) -> Int64[np.ndarray, " _"]:
    start, end = np.searchsorted(chosen, [first, first + rows])
    return chosen[start:end] - first
