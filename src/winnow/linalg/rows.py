"""Rows: the matrix of a least-squares problem as something that is read row by row.   (floor 2 · linalg)

Every read is counted. What is read is float64 or float32; anything else is converted piece by piece, so that
no second copy of the matrix is made. Sums over rows have the same bits whatever pieces the rows come in.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import scipy.sparse
from jaxtyping import Float64, Int64
from scipy.sparse.linalg import LinearOperator

from winnow.base.errors import UsageError
from winnow.kernels.row_sketch import SEGMENT, TILE, RowPasses, sign_entries

PIECE_BYTES = 64 << 20
SPARSE_PIECE = 1 << 16  # rows of a sparse sketch that are drawn together
BLOCK = 64  # vectors that a linear operator is given together
Vectors = Float64[np.ndarray, "B D"]
HELD = (np.float64, np.float32)


@final
@dataclass(frozen=True)
class RowBlocks:
    """A matrix handed over as blocks of rows of any sizes, from the first row to the last.

    `blocks` starts a new pass each time it is called and yields arrays [rows, n_columns]; a list of arrays
    may be given as it is. A generator, which runs once, is refused: solving needs several passes. The blocks
    of a pass must be those of the first; `n_rows` says how many rows they hold together.
    """

    blocks: Callable[[], Iterable[np.ndarray]] | Iterable[np.ndarray]
    n_rows: int
    n_columns: int

    def __post_init__(self) -> None:
        """Refuse what cannot be read twice."""
        if isinstance(self.blocks, Iterator):
            raise UsageError(
                f"blocks is a {type(self.blocks).__name__}, which is read once; expected what can "
                "be read again: pass a function that returns a new iterator, such as lambda: read(path)."
            )

    def start(self) -> Iterator[np.ndarray]:
        """Begin a pass."""
        return iter(self.blocks() if callable(self.blocks) else self.blocks)


@dataclass(frozen=True)
class Sketch:
    """Which sparse sign matrix: `height` rows, `nonzeros` entries per column, drawn from `seed`."""

    height: int
    nonzeros: int
    seed: int


@runtime_checkable
class Rows(Protocol):
    """A matrix [N, D] that can be read in passes; `passes` counts them."""

    shape: tuple[int, int]
    passes: int

    def gram(self) -> Float64[np.ndarray, "D D"]:
        """Return ``A.T @ A``."""
        ...

    def sketch(self, how: Sketch) -> Float64[np.ndarray, "height D"]:
        """Return ``S @ A`` with columns of S of norm 1."""
        ...

    def normal(
        self, x: Vectors, b: Float64[np.ndarray, "B N"] | None
    ) -> tuple[Vectors, Float64[np.ndarray, " B"]]:
        """Return ``A.T @ v`` and the square of |v|, where ``v = A @ x - b``, for each vector."""
        ...

    def scores(self, p: Vectors) -> Float64[np.ndarray, " N"]:
        """Return, for each row, the sum of its squared products with the vectors."""
        ...


@final
class DenseRows:
    """An array, a memory-mapped file, or blocks."""

    def __init__(self, source: np.ndarray | RowBlocks, passes: RowPasses) -> None:
        """Read nothing yet."""
        self.source = source
        shape = (source.n_rows, source.n_columns) if isinstance(source, RowBlocks) else source.shape
        self.shape = (int(shape[0]), int(shape[1]))
        self.passes = 0
        self._read = passes

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, contiguous rows): all but the last piece hold whole segments."""
        self.passes += 1
        if isinstance(self.source, RowBlocks):
            yield from self._from_blocks(self.source)
            return
        rows = piece_rows(self.shape[1])
        whole = not isinstance(self.source, np.memmap) and _is_ready(self.source)
        for first in range(0, self.shape[0], self.shape[0] if whole else rows):
            yield first, held(self.source if whole else self.source[first : first + rows])

    def _from_blocks(self, source: RowBlocks) -> Iterator[tuple[int, np.ndarray]]:
        first, kept, n_kept = 0, [], 0
        for number, given in enumerate(source.start()):
            block = np.asarray(given)
            if block.ndim != 2 or block.shape[1] != self.shape[1]:
                raise UsageError(f"block {number} is {block.shape}, expected [rows, {self.shape[1]}].")
            kept.append(held(block))
            n_kept += len(block)
            if n_kept >= piece_rows(self.shape[1]):
                together = np.concatenate(kept)
                n = n_kept // SEGMENT * SEGMENT
                yield first, together[:n]
                first, kept, n_kept = first + n, [together[n:]], n_kept - n
        if first + n_kept != self.shape[0]:
            raise UsageError(
                f"the blocks hold {first + n_kept} rows, expected {self.shape[0]}: "
                "every pass must yield all of them."
            )
        if n_kept:
            yield first, np.concatenate(kept)

    def gram(self) -> Float64[np.ndarray, "D D"]:
        """Return ``A.T @ A``, summed in float64."""
        out = np.zeros((self.shape[1], self.shape[1]))
        for _, piece in self.pieces():
            self._read.gram(piece, out)
        return np.triu(out) + np.triu(out, 1).T

    def sketch(self, how: Sketch) -> Float64[np.ndarray, "height D"]:
        """Return ``S @ A``."""
        out = np.zeros((-(-self.shape[1] // TILE), how.height, TILE))
        for first, piece in self.pieces():
            self._read.sketch(piece, first, how.seed, how.nonzeros, out)
        flat = out.transpose(1, 0, 2).reshape(how.height, -1)[:, : self.shape[1]]
        return flat / np.sqrt(how.nonzeros)

    def normal(
        self, x: Vectors, b: Float64[np.ndarray, "B N"] | None
    ) -> tuple[Vectors, Float64[np.ndarray, " B"]]:
        """Return ``A.T @ v`` and the squares of v."""
        out, squares = np.zeros(x.shape), np.zeros(len(x))
        x = np.ascontiguousarray(x)
        for first, piece in self.pieces():
            part = None if b is None else np.ascontiguousarray(b[:, first : first + len(piece)])
            self._read.normal(piece, x, part, out, squares)
        return out, squares

    def scores(self, p: Vectors) -> Float64[np.ndarray, " N"]:
        """Return the sums of squared products."""
        out, p = np.empty(self.shape[0]), np.ascontiguousarray(p)
        for first, piece in self.pieces():
            self._read.scores(piece, p, out[first : first + len(piece)])
        return out


@final
class SparseRows:
    """A scipy.sparse matrix; its products run on one thread."""

    def __init__(self, matrix: Any) -> None:
        """Hold a csr_array of float64, whose rows are quick to reach."""
        self.matrix = matrix
        self.shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        self.passes = 0

    def gram(self) -> Float64[np.ndarray, "D D"]:
        """Return ``A.T @ A``."""
        self.passes += 1
        return (self.matrix.T @ self.matrix).toarray()

    def sketch(self, how: Sketch) -> Float64[np.ndarray, "height D"]:
        """Return ``S @ A``."""
        self.passes += 1
        out = np.zeros((how.height, self.shape[1]))
        for first in range(0, self.shape[0], SPARSE_PIECE):
            piece = self.matrix[first : first + SPARSE_PIECE]
            out += (sign_matrix(how, first, piece.shape[0]) @ piece).toarray()
        return out

    def normal(
        self, x: Vectors, b: Float64[np.ndarray, "B N"] | None
    ) -> tuple[Vectors, Float64[np.ndarray, " B"]]:
        """Return ``A.T @ v`` and the squares of v."""
        self.passes += 1
        v = self.matrix @ x.T
        v = v if b is None else v - b.T
        return np.ascontiguousarray((self.matrix.T @ v).T), np.square(v).sum(axis=0)

    def scores(self, p: Vectors) -> Float64[np.ndarray, " N"]:
        """Return the sums of squared products."""
        self.passes += 1
        out = np.empty(self.shape[0])
        for first in range(0, self.shape[0], SPARSE_PIECE):
            piece = self.matrix[first : first + SPARSE_PIECE]
            out[first : first + SPARSE_PIECE] = np.square(piece @ p.T).sum(axis=1)
        return out


@final
class OperatorRows:
    """A LinearOperator; a pass is a product with a block of at most 64 vectors."""

    def __init__(self, operator: LinearOperator) -> None:
        """Hold the operator."""
        self.operator = operator
        self.shape = (int(operator.shape[0]), int(operator.shape[1]))
        self.passes = 0

    def gram(self) -> Float64[np.ndarray, "D D"]:
        """Return ``A.T @ A``."""
        d = self.shape[1]
        out = np.empty((d, d))
        for first in range(0, d, BLOCK):
            unit = np.eye(d, min(BLOCK, d - first), -first)
            out[:, first : first + BLOCK] = self._adjoint(self._apply(unit))
        return (out + out.T) / 2

    def sketch(self, how: Sketch) -> Float64[np.ndarray, "height D"]:
        """Return ``S @ A``, as the adjoint's products with the rows of S."""
        rows = sign_matrix(how, 0, self.shape[0]).tocsr()
        blocks = [rows[first : first + BLOCK].toarray().T for first in range(0, how.height, BLOCK)]
        return np.concatenate([self._adjoint(block).T for block in blocks])

    def normal(
        self, x: Vectors, b: Float64[np.ndarray, "B N"] | None
    ) -> tuple[Vectors, Float64[np.ndarray, " B"]]:
        """Return ``A.T @ v`` and the squares of v."""
        v = self._apply(x.T)
        v = v if b is None else v - b.T
        return np.ascontiguousarray(self._adjoint(v).T), np.square(v).sum(axis=0)

    def scores(self, p: Vectors) -> Float64[np.ndarray, " N"]:
        """Return the sums of squared products."""
        out = np.zeros(self.shape[0])
        for first in range(0, len(p), BLOCK):
            out += np.square(self._apply(p[first : first + BLOCK].T)).sum(axis=1)
        return out

    def _apply(self, vectors: np.ndarray) -> np.ndarray:
        self.passes += 1
        return np.asarray(self.operator.matmat(vectors), np.float64)

    def _adjoint(self, vectors: np.ndarray) -> np.ndarray:
        self.passes += 1
        return np.asarray(self.operator.rmatmat(vectors), np.float64)


def sign_matrix(how: Sketch, first: int, rows: int) -> scipy.sparse.csc_array:
    """Return the columns of S that belong to rows first .. first + rows - 1 of A."""
    places, signs = sign_entries(how.seed, first, rows, how.nonzeros, how.height)
    ends: Int64[np.ndarray, " N"] = np.arange(0, places.size + 1, how.nonzeros)
    values = signs.ravel() / np.sqrt(how.nonzeros)
    return scipy.sparse.csc_array((values, places.ravel(), ends), shape=(how.height, rows))


def piece_rows(columns: int) -> int:
    """Return how many rows are read together: whole segments, about 64 MB."""
    return max(1, PIECE_BYTES // (8 * columns * SEGMENT)) * SEGMENT


def held(block: np.ndarray) -> np.ndarray:
    """Return `block` contiguous, as float64 or float32; as it is where it is that."""
    dtype = block.dtype if block.dtype in HELD else np.float32 if block.dtype == np.float16 else np.float64
    return np.ascontiguousarray(block, dtype)


def _is_ready(array: np.ndarray) -> bool:
    return array.dtype in HELD and bool(array.flags.c_contiguous) and array.dtype.isnative
