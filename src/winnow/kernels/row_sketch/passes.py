"""RowPasses: one read of the rows of a tall matrix, compiled or by definition.   (floor 1 · kernels)

Arrays are C-contiguous, vectors the rows of a matrix. Sums over rows are sums over segments of SEGMENT rows,
in order: a matrix handed over in pieces gives the bits of the whole, if every piece but the last holds whole
segments. The sketch adds row after row and takes any pieces.
"""

from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64
from scipy.linalg import solve_triangular

from winnow.base.errors import UsageError
from winnow.kernels import native
from winnow.kernels.choice import MAX_THREADS, isa_levels
from winnow.kernels.row_sketch.reference import sign_entries

SEGMENT = 1024  # kSegment of rows.hpp
TILE = 16  # kTile
Rows = Float64[np.ndarray, "N D"] | Float32[np.ndarray, "N D"]
Vectors = Float64[np.ndarray, "B D"]


@runtime_checkable
class RowPasses(Protocol):
    """The passes; each gives the same bits for any number of threads, and adds to what `out` holds."""

    def sketch(
        self, a: Rows, first: int, seed: int, nonzeros: int, out: Float64[np.ndarray, "tiles height 16"]
    ) -> None:
        """Add ``signs @ a`` in tiles of columns; row `first` of the whole matrix is the first of `a`."""
        ...

    def gram(self, a: Rows, out: Float64[np.ndarray, "D D"]) -> None:
        """Add the upper triangle of ``a.T @ a``; what lies below is of no account."""
        ...

    def normal(
        self,
        a: Rows,
        x: Vectors,
        b: Float64[np.ndarray, "B N"] | None,
        out: Vectors,
        squares: Float64[np.ndarray, " B"],
    ) -> None:
        """Add ``v @ a`` to `out` and the square of |v| to `squares`, where ``v = x @ a.T - b``."""
        ...

    def scores(self, a: Rows, x: Vectors, out: Float64[np.ndarray, " N"]) -> None:
        """Write, for each row of `a`, the sum of its squared products with the vectors."""
        ...

    def cholesky(self, g: Float64[np.ndarray, "D D"]) -> int:
        """Overwrite the upper triangle of `g` with R, ``g = R.T @ R``; return the rows done, D if all."""
        ...

    def solve(self, r: Float64[np.ndarray, "D D"], transposed: bool, x: Vectors) -> None:
        """Overwrite each vector with its product with the inverse of `r`, or of ``r.T``."""
        ...


@final
class ReferencePasses:
    """The passes by their definitions; the arithmetic runs on numpy's threads."""

    def sketch(
        self, a: Rows, first: int, seed: int, nonzeros: int, out: Float64[np.ndarray, "tiles height 16"]
    ) -> None:
        """Add ``signs @ a`` in tiles of columns."""
        padded = np.zeros((len(a), out.shape[0] * TILE))
        padded[:, : a.shape[1]] = a
        places, signs = sign_entries(seed, first, len(a), nonzeros, out.shape[1])
        terms = signs[:, :, None, None] * padded.reshape(len(a), 1, -1, TILE)
        np.add.at(out.transpose(1, 0, 2), places, terms)  # row after row onto what is there

    def gram(self, a: Rows, out: Float64[np.ndarray, "D D"]) -> None:
        """Add ``a.T @ a``."""
        for start in range(0, len(a), SEGMENT):
            wide = a[start : start + SEGMENT].astype(np.float64)
            out += wide.T @ wide

    def normal(
        self,
        a: Rows,
        x: Vectors,
        b: Float64[np.ndarray, "B N"] | None,
        out: Vectors,
        squares: Float64[np.ndarray, " B"],
    ) -> None:
        """Add ``v @ a`` and the squares of v, where ``v = x @ a.T - b``."""
        for start in range(0, len(a), SEGMENT):
            wide = a[start : start + SEGMENT].astype(np.float64)
            v = x @ wide.T - (0.0 if b is None else b[:, start : start + SEGMENT])
            out += v @ wide
            squares += np.square(v).sum(axis=1)

    def scores(self, a: Rows, x: Vectors, out: Float64[np.ndarray, " N"]) -> None:
        """Write the sums of squared products."""
        for start in range(0, len(a), SEGMENT):
            wide = a[start : start + SEGMENT].astype(np.float64)
            out[start : start + SEGMENT] = np.square(wide @ x.T).sum(axis=1)

    def cholesky(self, g: Float64[np.ndarray, "D D"]) -> int:
        """Overwrite `g` with R."""
        for i in range(len(g)):
            g[i, i:] -= g[:i, i] @ g[:i, i:]
            if not g[i, i] > 0:
                return i
            g[i, i:] /= np.sqrt(g[i, i])
            g[i, :i] = 0
        return len(g)

    def solve(self, r: Float64[np.ndarray, "D D"], transposed: bool, x: Vectors) -> None:
        """Overwrite each vector with its product with the inverse."""
        x[:] = solve_triangular(r, x.T, trans=int(transposed), check_finite=False).T


def open_passes(threads: int, isa: str = "best") -> RowPasses:
    """Return the passes on `threads` threads, the caller's among them.

    `isa` is "best", one of `isa_levels()`, or "torch" for the definitions (in numpy). Threads start here,
    sleep when idle and end with the object. Raises UsageError for another number or name.
    """
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads is {threads}, expected 1..{MAX_THREADS}.")
    levels = isa_levels()
    name = (levels[-1] if levels else "torch") if isa == "best" else isa
    if name == "torch" or native.module is None:
        return ReferencePasses()
    if name not in levels:
        raise UsageError(
            f"isa is {isa!r}, this machine and build have: {', '.join(('best', *levels, 'torch'))}."
        )
    made: Any = native.module.RowPasses(threads, name)
    return made
