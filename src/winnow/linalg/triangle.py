"""Triangle: what makes a problem well conditioned, and says what the matrix is like.   (floor 2 · linalg)

    R.T @ R = A.T @ A + ridge            from the Gram matrix: A @ inv(R) is orthonormal to cond^2 * 1e-16
    R.T @ R = (S @ A).T (S @ A) + ridge  from a sketch: its singular values lie within 1 +- sqrt(D / height)

Columns are scaled to norm 1 before anything is factored, which costs D divisions and keeps their units from
counting as ill-conditioning. A rank-deficient problem keeps the leading right singular vectors alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float64

from winnow.kernels.row_sketch import RowPasses

EPS = float(np.finfo(np.float64).eps)
CHOLESKY_COND = 1e7  # up to here a Gram matrix keeps enough digits
Square = Float64[np.ndarray, "D D"]
Vectors = Float64[np.ndarray, "B D"]


@dataclass(frozen=True)
class Triangle:
    """R, or what is kept of ``R = U @ diag(s) @ V.T``: the leading columns of U and of V @ diag(1 / s)."""

    r: Square
    kept: tuple[Float64[np.ndarray, "D rank"], Float64[np.ndarray, "D rank"]] | None  # None: all
    stretch: float  # at most this many times |v| is |inv(R).T A.T v| short of |v|, for v in the range of A
    cond: float  # of the scaled columns
    passes: RowPasses
    dropped: float = 0.0  # the largest singular value left out, as a share of the largest

    @property
    def kept_cond(self) -> float:
        """The condition of the directions that are kept; rounding errors grow by this."""
        if self.kept is None:
            return self.cond
        lengths = np.linalg.norm(self.kept[1], axis=0)  # 1 / s, ascending
        return float(lengths[-1] / lengths[0]) if len(lengths) else 1.0

    @property
    def rank(self) -> int:
        """The number of directions that are kept."""
        return len(self.r) if self.kept is None else self.kept[1].shape[1]

    def solve(self, y: Float64[np.ndarray, "B rank"]) -> Vectors:
        """Return ``inv(R) @ y`` for each vector."""
        if self.kept is not None:
            return y @ self.kept[1].T
        x = np.array(y, order="C")
        self.passes.solve(self.r, False, x)
        return x

    def solve_transposed(self, g: Vectors) -> Float64[np.ndarray, "B rank"]:
        """Return ``inv(R).T @ g`` for each vector."""
        if self.kept is not None:
            return g @ self.kept[1]
        y = np.array(g, order="C")
        self.passes.solve(self.r, True, y)
        return y

    def solve_rotated(self, z: Vectors) -> Vectors:
        """Return the x of least norm that is nearest to ``R @ x = z``, for each vector."""
        return self.solve(z if self.kept is None else z @ self.kept[0])

    def singular_values(self) -> Float64[np.ndarray, " D"]:
        """Return those of R, descending."""
        return np.linalg.svd(self.r, compute_uv=False)

    def lengths(self) -> Float64[np.ndarray, " D"]:
        """Return the norms of the columns of R: those of A, or their estimates; 1 for a column of zeros."""
        found = np.linalg.norm(self.r, axis=0)
        return np.where(found > 0, found, 1.0)

    def backward_error(
        self, x: Vectors, gradient: Vectors, objective: Float64[np.ndarray, " B"]
    ) -> Float64[np.ndarray, " B"]:
        """Return an estimate of the least |dA| / |A|, Frobenius, for which each x is exact.

        The columns of A are scaled to norm 1 first: a small error beside a large column is no small error of
        a small one. Karlson and Walden's, ``| (|x|^2 A.T A + |r|^2 I)^(-1/2) A.T r |``, with R in the place
        of A: right to a small factor. Costs a factorisation of [D, D] per vector.
        """
        lengths = self.lengths()
        x, gradient = x * lengths, gradient / lengths
        size, far = np.linalg.norm(x, axis=1), np.sqrt(objective)
        largest = np.abs(gradient).max(axis=1)  # squares of a gradient may leave the range where it does not
        norms = largest * np.linalg.norm(gradient / np.where(largest > 0, largest, 1.0)[:, None], axis=1)
        found = np.zeros(len(x))
        r = self.r / lengths
        scale = float(np.linalg.norm(r))
        for i in np.flatnonzero(norms > 0):
            if size[i] == 0 or far[i] > 1e3 * scale * size[i] / EPS:
                found[i] = norms[i] / far[i] / scale
                continue
            shift = far[i] / size[i]
            unit = _damped(r, shift, gradient[i] / largest[i])
            found[i] = np.linalg.norm(unit) * (largest[i] / size[i]) / scale
        return found


def _damped(r: Square, shift: float, g: Float64[np.ndarray, " D"]) -> Float64[np.ndarray, " D"]:
    """Return ``T.T \\ g`` where ``T.T @ T = R.T @ R + shift^2 I``."""
    triangle = triangle_of(np.concatenate([r, shift * np.eye(len(r))]))
    with np.errstate(divide="ignore", invalid="ignore"):
        y = scipy.linalg.solve_triangular(triangle, g, trans=1, check_finite=False)
    return np.where(np.isfinite(y), y, 0.0)


def from_gram(gram: Square, ridge: Float64[np.ndarray, " D"], passes: RowPasses) -> Triangle | None:
    """Return the triangle of ``gram + ridge``; None where it is too ill-conditioned to be had from there."""
    whole = gram + np.diag(ridge)
    lengths = np.sqrt(np.diag(whole))
    if not (
        (lengths > 1e-140) & (lengths < 1e140)
    ).all():  # squares that lost digits at the ends of the range
        return None
    scaled = whole / np.outer(lengths, lengths)
    done = passes.cholesky(scaled)
    if done < len(gram):
        return None
    scaled = np.triu(scaled)
    cond = _condition(scaled, passes)
    if cond >= CHOLESKY_COND:
        return None
    loss = min(0.5, 4 * np.sqrt(len(gram)) * EPS * cond**2)
    return Triangle(scaled * lengths, None, 1 / np.sqrt(1 - loss), cond, passes)


def exact(
    A: Float64[np.ndarray, "N D"],
    gram: Square,
    ridge: Float64[np.ndarray, " D"],
    passes: RowPasses,
    cond: float = np.inf,
) -> Triangle:
    """Return the triangle of A itself: from its Gram matrix where that is exact enough, else by QR.

    `cond` is what to say of the condition after QR, where it is not computed.
    """
    found = from_gram(gram, ridge, passes)
    if found is not None:
        return found
    is_alone = len(A) >= len(gram) and not ridge.any()
    tall = A if is_alone else np.concatenate([A, np.diag(np.sqrt(ridge))])
    return Triangle(triangle_of(tall), None, 1.0, cond, passes)


def from_sketch(
    sketched: Float64[np.ndarray, "height D"],
    right: Float64[np.ndarray, "height B"],
    ridge: Float64[np.ndarray, " D"],
    passes: RowPasses,
    gram: Callable[[np.ndarray], Square],
) -> tuple[Triangle, Vectors]:
    """Return the triangle of a sketch ``S @ A = Q @ R``, and ``Q.T @ S @ b``: R x = that solves the sketch.

    By Cholesky where that keeps enough digits, else by LAPACK's QR, whose last bits may depend on the number
    of threads of the BLAS. A column of zeros gives a zero on the diagonal: see `truncated`.
    """
    height, d = sketched.shape
    both = gram(np.concatenate([sketched, right], axis=1))
    found = from_gram(both[:d, :d], ridge, passes)
    if found is not None:
        return replace(found, stretch=stretch_of(d, height)), found.solve_transposed(both[d:, :d])
    stacked = np.concatenate([sketched, np.diag(np.sqrt(ridge))]) if ridge.any() else sketched
    right = np.concatenate([right, np.zeros((len(stacked) - height, right.shape[1]))])
    largest = np.abs(stacked).max(axis=0)
    lengths = np.where(largest > 0, largest, 1.0)
    lengths = lengths * np.linalg.norm(stacked / lengths, axis=0)
    lengths[largest == 0] = 1.0
    r = triangle_of(np.concatenate([stacked / lengths, right], axis=1))
    rotated, r = np.ascontiguousarray(r[:d, d:].T), np.ascontiguousarray(r[:d, :d])
    return Triangle(r * lengths, None, stretch_of(d, height), _condition(r, passes), passes), rotated


def truncated(triangle: Triangle, tolerance: float) -> Triangle:
    """Return the triangle without the singular values that are at most `tolerance` of the largest."""
    u, s, vt = np.linalg.svd(triangle.r)
    rank = int((s > tolerance * s[0]).sum())
    if rank in (0, len(s)):
        return triangle if rank else replace(triangle, kept=(u[:, :0], vt[:0].T))
    return replace(triangle, kept=(u[:, :rank].copy(), vt[:rank].T / s[:rank]), dropped=float(s[rank] / s[0]))


def triangle_of(tall: Float64[np.ndarray, "N D"]) -> Square:
    """Return R of LAPACK's QR factorisation."""
    r: Any = np.linalg.qr(tall, mode="r")  # numpy's stubs know one mode
    return r


def stretch_of(d: int, height: int) -> float:
    """Return how much a sketch may lengthen a vector of a range of dimension d.

    1 + sqrt(d / height), and a margin.

    The margin is Davidson and Szarek's for a failure of e^-12; exact for Gaussian sketches, a model for
    sparse signs, which behave like them from 4 entries per column on (tests/linalg and benchmarks/lstsq.py
    hold it).
    """
    return float(1 + np.sqrt(d / height) + np.sqrt(24 / height))


def _condition(r: Square, passes: RowPasses) -> float:
    """Return an estimate of the condition of R from below, by power iteration; inf if singular."""
    if not (np.abs(np.diag(r)) > 0).all():
        return float("inf")
    d = len(r)
    start = (1.0 + np.arange(d) % 7 / 7) * (1 - 2.0 * (np.arange(d) % 2))
    largest, smallest = start / np.linalg.norm(start), start[None] / np.linalg.norm(start)
    top = bottom = 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(6):
            largest = (r @ largest) @ r
            top = float(np.linalg.norm(largest))
            largest = largest / top
            smallest = smallest.copy()
            passes.solve(r, True, smallest)
            passes.solve(r, False, smallest)
            bottom = float(np.linalg.norm(smallest))
            smallest = smallest / bottom
        found = np.sqrt(top * bottom)
    return float(found) if np.isfinite(found) else float("inf")
