"""Matrices: weights [M, D] as floats, as bytes, as halves of bytes.   (floor 1 · kernels)

    Matrix            float32 or bfloat16
    CodedMatrix       bfloat16 in twelve bits, nothing lost
    QuantisedMatrix   int8, one scale per row
    Int4Matrix        four bits, one scale per group of 32 along a row

All have `weight`, the matrix that is meant; `rows`, some rows of it in float32; `part`, rows that follow each
other as they lie; `put`, which writes rows; and `n_bytes`, what a product reads. Rows may be strided, their
columns lie one after the other.
"""

from typing import final

import torch
from jaxtyping import BFloat16, Float, Float32, Int64, Shaped, UInt8
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels import native
from winnow.kernels.operands import (
    CODED,
    DTYPE_CODES,
    RECORD_ALIGNMENT_BYTES,
    aligned_bytes,
    check_dtype,
    check_memory,
    int4,
)
from winnow.kernels.pack import (
    GROUP,
    can_code,
    check_int4,
    coded_row_bytes,
    from_coded,
    from_int4,
    is_sound,
    pack,
    pack_coded,
    unpack_coded,
)

MOST_BYTES = 1 << 16  # weights in a row of int8: their products are summed in 32 bits


@final
class Matrix:
    """A weight matrix [M, D] whose rows are read as they lie: float32 or bfloat16, rows contiguous.

    Holds `weight` itself, never a copy. Raises UsageError for another rank, dtype, device or column stride.
    """

    __slots__ = ("handle", "weight")

    def __init__(self, weight: Float[Tensor, "M D"]) -> None:
        """Wrap `weight`; rows may be strided, columns may not."""
        check_dtype("weight", weight.dtype)
        check_memory("weight", weight)
        if weight.ndim != 2 or weight.shape[1] == 0:
            raise UsageError(f"weight has shape {tuple(weight.shape)}, expected [M, D] with D > 0.")
        if weight.shape[1] > 1 and weight.stride(1) != 1:
            raise UsageError(
                f"weight has column stride {weight.stride(1)}, expected 1: pass weight.contiguous()."
            )
        self.weight = weight
        self.handle = None
        if native.module is not None:
            self.handle = native.module.Matrix(
                weight.data_ptr(), *weight.shape, weight.stride(0), DTYPE_CODES[weight.dtype], 0, 0
            )

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """M and D."""
        return tuple(self.weight.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.weight.numel() * self.weight.element_size()

    def rows(self, ids: Int64[Tensor, " N"]) -> Float32[Tensor, "N D"]:
        """Return the rows numbered `ids`."""
        return self.weight[ids].float()

    def part(self, start: int, stop: int) -> "Matrix":
        """Return the rows start..stop-1, the same memory."""
        return Matrix(self.weight[start:stop])

    @classmethod
    def empty(cls, n_rows: int, width: int, dtype: torch.dtype) -> "Matrix":
        """Return an uninitialised [n_rows, width] matrix on huge pages, to be filled by `put`."""
        check_dtype("dtype", dtype)
        memory = aligned_bytes(n_rows * width * dtype.itemsize)
        return cls(memory.view(dtype).view(n_rows, width))

    def put(self, weight: Float[Tensor, "N D"], first: int = 0) -> None:
        """Write the rows from `first` on, rounded to the matrix's type."""
        pack(weight, self.weight[first : first + len(weight)])


@final
class CodedMatrix:
    """A matrix [M, D] of bfloat16 in twelve bits a weight: the same numbers in three quarters of the bytes.

    The high bytes of a row's weights are held as codes of four bits; `pack.coded` has the layout. D is a
    multiple of 128 in 256..16384. Raises UsageError for another width, rank, dtype or layout.
    """

    __slots__ = ("handle", "storage", "width")
    dtype = torch.bfloat16

    def __init__(self, storage: UInt8[Tensor, "M row_bytes"], width: int) -> None:
        """Wrap coded rows of `width` weights, never copied; rows may be strided."""
        expected = coded_row_bytes(width)
        if not can_code(width) or storage.dtype != torch.uint8 or storage.shape[1:] != (expected,):
            raise UsageError(
                f"storage is {storage.dtype} {tuple(storage.shape)} for rows of {width} weights, expected "
                f"uint8 [M, {expected}] and a multiple of 128 weights in 256..16384."
            )
        check_memory("storage", storage)
        _check_columns("storage", storage)
        self.storage = storage
        self.width = width
        self.handle = None
        if native.module is not None:
            self.handle = native.module.Matrix(
                storage.data_ptr(), len(storage), width, storage.stride(0), CODED, 0, 0
            )

    @classmethod
    def of(cls, weight: Float[Tensor, "M D"]) -> "CodedMatrix | None":
        """Return `weight`, rounded to bfloat16, or None where a row has more patches than room."""
        held = cls.empty(*weight.shape)
        return held if held.put(weight) else None

    @classmethod
    def empty(cls, n_rows: int, width: int) -> "CodedMatrix":
        """Return an uninitialised [n_rows, width] matrix on huge pages, to be filled by `put`."""
        row_bytes = coded_row_bytes(width)
        return cls(aligned_bytes(n_rows * row_bytes).view(n_rows, row_bytes), width)

    def put(self, weight: Float[Tensor, "N D"], first: int = 0) -> bool:
        """Write the rows from `first` on; False, some unwritten, where one has more patches than room."""
        return pack_coded(weight, self.storage[first : first + len(weight)])

    def is_sound(self) -> bool:
        """Return whether what stands in front of the rows stays within them; other bytes mean some weight."""
        return is_sound(self.storage, self.width)

    @property
    def weight(self) -> BFloat16[Tensor, "M D"]:
        """The matrix that is meant, made anew at each call."""
        return unpack_coded(self.storage, self.width)

    @property
    def shape(self) -> tuple[int, ...]:
        """M and D."""
        return len(self.storage), self.width

    def rows(self, ids: Int64[Tensor, " N"]) -> Float32[Tensor, "N D"]:
        """Return the rows numbered `ids`."""
        return from_coded(self.storage[ids], self.width).float()

    def part(self, start: int, stop: int) -> "CodedMatrix":
        """Return the rows start..stop-1, the same memory."""
        return CodedMatrix(self.storage[start:stop], self.width)

    @property
    def n_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.storage.numel()


@final
class QuantisedMatrix:
    """A matrix [M, D] held as int8, one float32 scale per row: ``weight = values * scales[:, None]``.

    A row's entries are off by at most half its scale, which is its largest magnitude over 127. The input of a
    product is rounded to 16 bits of its largest magnitude where the processor multiplies bytes (avx512), and
    not at all elsewhere. Raises UsageError for another rank, dtype or layout.
    """

    __slots__ = ("handle", "scales", "values")
    dtype = torch.int8

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        """Wrap `values` int8 [M, D] and `scales` float32 [M], never copied."""
        if values.dtype != torch.int8 or values.ndim != 2 or not 0 < values.shape[1] <= MOST_BYTES:
            raise UsageError(
                f"values are {values.dtype} {tuple(values.shape)}, expected int8 [M, D] with D in "
                f"1..{MOST_BYTES}."
            )
        if scales.dtype != torch.float32 or scales.shape != values.shape[:1]:
            raise UsageError(
                f"scales are {scales.dtype} {tuple(scales.shape)}, expected float32 [{len(values)}]."
            )
        check_memory("values", values)
        check_memory("scales", scales)
        _check_columns("values", values)
        self.values = values
        self.scales = scales
        self.handle = None
        if native.module is not None:
            self.handle = native.module.Matrix(
                values.data_ptr(),
                *values.shape,
                values.stride(0),
                DTYPE_CODES[torch.int8],
                scales.data_ptr(),
                scales.stride(0),
            )

    @classmethod
    def of(cls, weight: Float[Tensor, "M D"]) -> "QuantisedMatrix":
        """Return `weight` rounded to the nearest int8 of each row; a row of zeros stays one."""
        held = cls.empty(*weight.shape)
        held.put(weight)
        return held

    @classmethod
    def empty(cls, n_rows: int, width: int) -> "QuantisedMatrix":
        """Return an uninitialised [n_rows, width] matrix on huge pages, to be filled by `put`."""
        values, scales = _with_scales(n_rows, width, torch.float32, 1)
        return cls(values.view(torch.int8), scales.view(n_rows))

    def put(self, weight: Float[Tensor, "N D"], first: int = 0) -> None:
        """Write the rows from `first` on, each rounded to the nearest int8 of its scale."""
        end = first + len(weight)
        pack(weight, self.values[first:end], self.scales[first:end])

    @property
    def weight(self) -> Float32[Tensor, "M D"]:
        """The matrix that is meant, made anew at each call."""
        return self.values.float() * self.scales[:, None]

    @property
    def shape(self) -> tuple[int, ...]:
        """M and D."""
        return tuple(self.values.shape)

    def rows(self, ids: Int64[Tensor, " N"]) -> Float32[Tensor, "N D"]:
        """Return the rows numbered `ids`."""
        return self.values[ids].float() * self.scales[ids][:, None]

    def part(self, start: int, stop: int) -> "QuantisedMatrix":
        """Return the rows start..stop-1, the same memory."""
        return QuantisedMatrix(self.values[start:stop], self.scales[start:stop])

    @property
    def n_bytes(self) -> int:
        """Bytes that one product reads, scales included."""
        return self.values.numel() + 4 * self.scales.numel()


@final
class Int4Matrix:
    """A matrix [M, D] held as four bits a weight, one bfloat16 scale per group of 32 along a row.

    A group is 16 bytes: weight j in the low half of byte j, weight ``j + 16`` in its high half, plus 8;
    together 4.5 bits a weight. The scale is a group's largest magnitude over 7.5 to 9, whichever loses least;
    entries within -8.5 and 7.5 scales are off by at most half of one, those beyond by up to two. The input of
    a product is rounded to 8 bits of the largest magnitude among its 32 neighbours where the processor
    multiplies bytes (avx512), a tenth of what the weights lose, and not at all elsewhere. Raises UsageError
    where D is no multiple of 32, and for another rank, dtype or layout.
    """

    __slots__ = ("groups", "handle", "scales")
    dtype = int4

    def __init__(self, groups: UInt8[Tensor, "M D_half"], scales: BFloat16[Tensor, "M D_groups"]) -> None:
        """Wrap both, never copied."""
        if groups.dtype != torch.uint8 or groups.ndim != 2 or groups.shape[1] % (GROUP // 2):
            raise UsageError(
                f"groups are {groups.dtype} {tuple(groups.shape)}, expected uint8 [M, D / 2] in whole groups."
            )
        expected = (groups.shape[0], groups.shape[1] // (GROUP // 2))
        if scales.dtype != torch.bfloat16 or tuple(scales.shape) != expected or not groups.shape[1]:
            raise UsageError(
                f"scales are {scales.dtype} {tuple(scales.shape)}, expected bfloat16 {expected} above 0."
            )
        for name, tensor in (("groups", groups), ("scales", scales)):
            check_memory(name, tensor)
            _check_columns(name, tensor)
        self.groups = groups
        self.scales = scales
        self.handle = None
        if native.module is not None:
            self.handle = native.module.Matrix(
                groups.data_ptr(),
                len(groups),
                2 * groups.shape[1],
                2 * groups.stride(0),
                DTYPE_CODES[int4],
                scales.data_ptr(),
                scales.stride(0),
            )

    @classmethod
    def of(cls, weight: Float[Tensor, "M D"]) -> "Int4Matrix":
        """Return `weight` rounded to the nearest of each group's sixteen values."""
        held = cls.empty(*weight.shape)
        held.put(weight)
        return held

    @classmethod
    def empty(cls, n_rows: int, width: int) -> "Int4Matrix":
        """Return an uninitialised [n_rows, width] matrix on huge pages, to be filled by `put`."""
        check_int4(width)
        return cls(*_with_scales(n_rows, width // 2, torch.bfloat16, width // GROUP))

    def put(self, weight: Float[Tensor, "N D"], first: int = 0) -> None:
        """Write the rows from `first` on, each group rounded to the sixteen values of its scale."""
        end = first + len(weight)
        pack(weight, self.groups[first:end], self.scales[first:end])

    @property
    def weight(self) -> Float32[Tensor, "M D"]:
        """The matrix that is meant, made anew at each call."""
        return from_int4(self.groups, self.scales)

    @property
    def shape(self) -> tuple[int, ...]:
        """M and D."""
        return len(self.groups), 2 * self.groups.shape[1]

    def rows(self, ids: Int64[Tensor, " N"]) -> Float32[Tensor, "N D"]:
        """Return the rows numbered `ids`."""
        return from_int4(self.groups[ids], self.scales[ids])

    def part(self, start: int, stop: int) -> "Int4Matrix":
        """Return the rows start..stop-1, the same memory."""
        return Int4Matrix(self.groups[start:stop], self.scales[start:stop])

    @property
    def n_bytes(self) -> int:
        """Bytes that one product reads, scales included."""
        return self.groups.numel() + 2 * self.scales.numel()


AnyMatrix = Matrix | CodedMatrix | QuantisedMatrix | Int4Matrix


def empty_matrix(n_rows: int, width: int, dtype: torch.dtype) -> AnyMatrix:
    """Return an uninitialised matrix held as `dtype`: float32, bfloat16, int8 or int4."""
    if dtype == torch.int8:
        return QuantisedMatrix.empty(n_rows, width)
    return Int4Matrix.empty(n_rows, width) if dtype == int4 else Matrix.empty(n_rows, width, dtype)


def matrix(weight: Float[Tensor, "M D"], dtype: torch.dtype) -> AnyMatrix:
    """Return `weight` held as `dtype`: float32, bfloat16, int8 or int4."""
    if dtype == torch.int8:
        return QuantisedMatrix.of(weight)
    if dtype == int4:
        return Int4Matrix.of(weight)
    held = Matrix.empty(weight.shape[0], weight.shape[1], dtype)
    held.weight.copy_(weight)
    return held


def _with_scales(
    n_rows: int, row_bytes: int, dtype: torch.dtype, n_scales: int
) -> tuple[UInt8[Tensor, "M row_bytes"], Shaped[Tensor, "M n_scales"]]:
    """Return room for rows and for the scales of each behind them, all on huge pages."""
    start = -(-n_rows * row_bytes // RECORD_ALIGNMENT_BYTES) * RECORD_ALIGNMENT_BYTES
    memory = aligned_bytes(start + n_rows * n_scales * dtype.itemsize)
    rows = memory[: n_rows * row_bytes].view(n_rows, row_bytes)
    return rows, memory[start:].view(dtype).view(n_rows, n_scales)


def _check_columns(name: str, tensor: Tensor) -> None:
    if tensor.shape[1] > 1 and tensor.stride(1) != 1:
        raise UsageError(f"the rows of {name} are not contiguous: pass {name}.contiguous().")
