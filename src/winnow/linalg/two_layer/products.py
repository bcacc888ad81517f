"""Products: everything that reads A1 or A2, for any number of threads the same.   (floor 2 · linalg)

A BLAS gives long sums to its threads, and their number then shows in the last bits. Here long sums are cut
into blocks so small that a BLAS computes each on one thread; the blocks are added in order. That costs
nothing: what is read bounds the time. Gram matrices and scores come from `kernels.row_sketch`, which promises
the same.
"""

import numpy as np
from jaxtyping import Float

from winnow.kernels.row_sketch import open_passes

Vector = Float[np.ndarray, " _"]
Square = Float[np.ndarray, "square square"]

BLOCK_ENTRIES = 8192  # of a matrix times a vector: a BLAS of OpenBLAS's kind takes threads from 9216 on
BLOCK_ROWS = 16  # of a matrix product; with BLOCK_ENTRIES results, half of what OpenBLAS gives to threads
SLAB_BLOCKS = 64  # blocks whose results are held at once
FIRST_JITTER = 1e-14  # of the largest diagonal entry


class Products:
    """A1 [N M] and A2 [outputs N], read only in the ways that the loss needs."""

    def __init__(
        self, A1: Float[np.ndarray, "N M"], A2: Float[np.ndarray, "outputs N"], threads: int
    ) -> None:
        """Read nothing yet."""
        self._A1, self._passes = np.ascontiguousarray(A1), open_passes(threads)
        self._rows, self._rest = _blocks(self._A1)
        self._columns, self._columns_rest = _blocks(A2.T)

    def logits(self, x: Vector) -> Vector:
        """Return ``A1 x``."""
        return np.concatenate([(self._rows @ x).ravel(), self._rest @ x])

    def back(self, v: Vector) -> Vector:
        """Return ``A1^T v``."""
        return _sum_of_rows(self._rows, self._rest, v)

    def outputs(self, f: Vector) -> Vector:
        """Return ``A2 f``."""
        return _sum_of_rows(self._columns, self._columns_rest, f)

    def outputs_back(self, c: Vector) -> Vector:
        """Return ``A2^T c``."""
        return np.concatenate([(self._columns @ c).ravel(), self._columns_rest @ c])

    def times_rows(self, left: Float[np.ndarray, "_ N"]) -> Float[np.ndarray, "_ M"]:
        """Return ``left @ A1``."""
        out = np.zeros((len(left), self._A1.shape[1]))
        height = max(1, BLOCK_ENTRIES // self._A1.shape[1])
        for top in range(0, len(left), height):
            part = left[top : top + height]
            for first in range(0, len(self._A1), SLAB_BLOCKS * BLOCK_ROWS):
                slab = slice(first, first + SLAB_BLOCKS * BLOCK_ROWS)
                out[top : top + height] += _product(part[:, slab], self._A1[slab])
        return out

    def gram(self, weights: Vector) -> Square:
        """Return ``A1^T diag(weights) A1``; weights of either sign."""
        out = np.zeros((self._A1.shape[1], self._A1.shape[1]))
        for sign in (1.0, -1.0):
            rows = np.flatnonzero(sign * weights > 0.0)
            if len(rows):
                out += sign * self.gram_of(self._A1[rows] * np.sqrt(np.abs(weights[rows]))[:, None])
        return out

    def gram_of(self, rows: Float[np.ndarray, "_ _"]) -> Square:
        """Return ``rows^T rows`` of any matrix."""
        out = np.zeros((rows.shape[1], rows.shape[1]))
        self._passes.gram(np.ascontiguousarray(rows), out)
        return np.triu(out) + np.triu(out, 1).T

    def scores(self, vectors: Float[np.ndarray, "_ M"]) -> Vector:
        """Return, for each row of A1, the sum of its squared products with the vectors."""
        out = np.empty(len(self._A1))
        self._passes.scores(self._A1, np.ascontiguousarray(vectors), out)
        return out

    def definite_factor(self, matrix: Square) -> tuple[Square, float]:
        """Return the upper Cholesky factor of ``matrix + damping I`` and the first damping that allows it.

        0, then ``1e-14`` of the largest diagonal entry, then tenfold. M^3 / 3 operations per try.
        """
        damping, unit = 0.0, np.eye(len(matrix))
        # Never a subnormal number: a processor that takes those for 0 would try 0 for ever.
        first = max(FIRST_JITTER * float(np.abs(np.diagonal(matrix)).max()), np.finfo(np.float64).tiny)
        while True:
            factor = matrix + damping * unit
            if self._passes.cholesky(factor) == len(matrix):
                return np.triu(factor), damping
            damping = 10.0 * damping if damping else first

    def solve(self, factor: Square, vectors: Float[np.ndarray, "_ M"], *, both: bool) -> np.ndarray:
        """Return ``inv(R) v`` for each vector, or ``inv(R^T R) v`` where `both` is set."""
        solved = np.array(vectors, order="C")
        if both:
            self._passes.solve(factor, True, solved)
        self._passes.solve(factor, False, solved)
        return solved

    def descent(self, factor: Square, gradient: Vector) -> Vector:
        """Return ``-inv(R^T R) gradient``."""
        return -self.solve(factor, gradient[None], both=True)[0]


def dot(a: Vector, b: Vector) -> float:
    """Return the product of two long vectors; numpy's own sums run on one thread."""
    return float((a * b).sum())


def _blocks(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows as a stack of equal blocks, without a copy, and those that are left over."""
    height = max(1, BLOCK_ENTRIES // rows.shape[1])
    whole = len(rows) // height * height
    stacked = np.lib.stride_tricks.as_strided(
        rows,
        (whole // height, height, rows.shape[1]),
        (height * rows.strides[0], *rows.strides),
        writeable=False,
    )
    return stacked, rows[whole:]


def _sum_of_rows(stacked: np.ndarray, rest: np.ndarray, v: Vector) -> Vector:
    n_blocks, height, _ = stacked.shape
    whole = n_blocks * height
    return (v[:whole].reshape(n_blocks, 1, height) @ stacked).sum(axis=(0, 1)) + v[whole:] @ rest


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return ``left @ right``, summed block by block."""
    whole = len(right) // BLOCK_ROWS * BLOCK_ROWS
    lefts = left[:, :whole].reshape(len(left), -1, BLOCK_ROWS).transpose(1, 0, 2)
    rights = right[:whole].reshape(-1, BLOCK_ROWS, right.shape[1])
    return (lefts @ rights).sum(axis=0) + left[:, whole:] @ right[whole:]
