"""Gate: what may be solved, checked once and completely.   (floor 2 · linalg)"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float64
from scipy.sparse.linalg import LinearOperator

from winnow.base.errors import ResourceError, UsageError
from winnow.base.rng import SEED_LIMIT
from winnow.base.room import free_memory_bytes, quantity
from winnow.kernels.row_sketch import open_passes
from winnow.linalg.rows import DenseRows, OperatorRows, RowBlocks, Rows, SparseRows

Matrix = (
    np.ndarray
    | torch.Tensor
    | list
    | scipy.sparse.sparray
    | scipy.sparse.spmatrix
    | LinearOperator
    | RowBlocks
)
Seed = int | np.integer | np.random.Generator | torch.Generator


@dataclass(frozen=True)
class Problem:
    """``min |A x - b|^2 + sum_j ridge_j x_j^2`` for each row of b."""

    rows: Rows
    b: Float64[np.ndarray, "B N"]
    ridge: Float64[np.ndarray, " D"]
    is_vector: bool  # b had one axis
    dtype: type[np.floating]  # of the answer
    is_torch: bool

    def give(self, x: Float64[np.ndarray, "B D"]) -> np.ndarray | torch.Tensor:
        """Return what was computed in the form in which the problem was given."""
        shaped = (x[0] if self.is_vector else x.T).astype(self.dtype)
        return torch.from_numpy(np.ascontiguousarray(shaped)) if self.is_torch else shaped


def open_problem(a: Matrix, b: object, ridge: float | np.ndarray, threads: int) -> Problem:
    """Return the checked problem; A is not read yet."""
    rows, a_dtype = open_rows(a, threads)
    is_torch = isinstance(a, torch.Tensor)
    right = _array(b, "b")
    if right.ndim not in (1, 2):
        raise UsageError(f"b has {right.ndim} axes, expected 1 (a vector) or 2 (one column per problem).")
    if len(right) != rows.shape[0]:
        raise UsageError(
            f"b has {len(right)} rows and A {rows.shape[0]}; expected the same: one right side per row."
        )
    columns = right[None] if right.ndim == 1 else right.T
    if columns.shape[0] == 0:
        raise UsageError(f"b is {right.shape}, expected at least one column.")
    columns = np.ascontiguousarray(columns, np.float64)
    if not np.isfinite(columns).all():
        raise UsageError(
            f"b holds {_first_broken(columns.T)}; expected finite numbers: clean or mask those rows."
        )
    small = all(d in (np.float32, np.float16) for d in (a_dtype, right.dtype))
    return Problem(
        rows,
        columns,
        ridge_of(ridge, rows.shape[1]),
        right.ndim == 1,
        np.float32 if small else np.float64,
        is_torch,
    )


def open_rows(a: Matrix, threads: int) -> tuple[Rows, np.dtype]:
    """Return the matrix as something to be read, and the type it is held in."""
    passes = open_passes(threads)
    if isinstance(a, RowBlocks):
        _check_shape((a.n_rows, a.n_columns))
        return DenseRows(a, passes), np.dtype(np.float64)
    if isinstance(a, LinearOperator):
        _check_shape(tuple(a.shape))
        _check_dtype(np.dtype(a.dtype or np.float64), "A")
        return OperatorRows(a), np.dtype(np.float64)
    if isinstance(a, scipy.sparse.sparray | scipy.sparse.spmatrix):
        held: Any = scipy.sparse.csr_array(a)  # scipy's stubs do not know what it holds
        _check_shape(held.shape)
        _check_dtype(held.dtype, "A")
        return SparseRows(held.astype(np.float64)), np.dtype(held.dtype)
    array = _array(a, "A")
    _check_shape(array.shape)
    return DenseRows(array, passes), array.dtype


def check_finite(rows: Rows) -> None:
    """Say where A is not finite, or that its squares are too large; called when a pass gave no number."""
    if isinstance(rows, DenseRows):
        for first, piece in rows.pieces():
            if not np.isfinite(piece).all():
                where = _first_broken(piece, first)
                raise UsageError(f"A holds {where}; expected finite numbers: clean or mask those rows.")
    if isinstance(rows, SparseRows) and not np.isfinite(rows.matrix.data).all():
        raise UsageError("A holds an entry that is not finite; expected finite numbers: clean its data.")
    raise UsageError(
        "the squares of A or b leave the range of float64, or A gives no numbers; "
        "expected entries below 1e100: scale A and b, or use method='lapack'."
    )


def check_memory(needed_bytes: int, what: str) -> None:
    """Raise ResourceError when `what` needs more memory than is free."""
    free = free_memory_bytes()
    if free is not None and needed_bytes > free:
        raise ResourceError(
            f"{what} needs {quantity(needed_bytes)} of memory, {quantity(free)} are free; "
            "solve for fewer columns, or choose another method."
        )


def seed_of(rng: Seed) -> int:
    """Return a seed: the number itself, or one drawn from the generator."""
    if isinstance(rng, torch.Generator):
        return int(torch.randint(SEED_LIMIT - 1, (), generator=rng))
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(SEED_LIMIT))
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer) or not 0 <= rng < SEED_LIMIT:
        raise UsageError(f"rng is {rng!r}, expected a whole number from 0 to 2**63 - 1, or a generator.")
    return int(rng)


def _array(given: object, name: str) -> np.ndarray:
    """Return a view of the numbers; a list is copied, a torch tensor is not."""
    if isinstance(given, torch.Tensor):
        if given.device.type != "cpu":
            raise UsageError(f"{name} lies on {given.device}, expected the CPU: pass {name}.cpu().")
        given = given.detach()
        given = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    if isinstance(given, np.ma.MaskedArray):
        raise UsageError(f"{name} is a masked array, expected plain numbers: drop the masked rows first.")
    try:
        array = given if isinstance(given, np.ndarray) else np.asarray(given)
    except ValueError as error:
        raise UsageError(f"{name} is no array of numbers ({error}); pass a numpy array.") from None
    _check_dtype(array.dtype, name)
    return array


def _check_dtype(dtype: np.dtype, name: str) -> None:
    if dtype.kind == "c":
        raise UsageError(
            f"{name} is {dtype}, expected real numbers: stack real and imaginary parts as rows and columns."
        )
    if dtype.kind not in "fiub":
        raise UsageError(f"{name} is {dtype}, expected real numbers: convert it with .astype(float).")


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise UsageError(
            f"A has shape {tuple(shape)}, expected [rows, columns]; a single column is A[:, None]."
        )
    if min(shape) < 1:
        raise UsageError(f"A is {shape[0]} x {shape[1]}, expected at least one row and one column.")


def ridge_of(ridge: float | np.ndarray, columns: int) -> Float64[np.ndarray, " D"]:
    """Return the ridge of each column."""
    values = np.asarray(ridge, np.float64)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != columns):
        raise UsageError(
            f"ridge has shape {values.shape}, expected a number or one for each of {columns} columns."
        )
    if not (np.isfinite(values) & (values >= 0)).all():
        raise UsageError(f"ridge is {ridge}, expected finite numbers of 0 or more.")
    return np.broadcast_to(values, columns).copy()


def _first_broken(array: np.ndarray, first: int = 0) -> str:
    row, column = np.argwhere(~np.isfinite(array))[0]
    return f"{array[row, column]} in row {row + first}, column {column}"
