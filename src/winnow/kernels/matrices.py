"""Matrices: weights [M, D] as floats, as bytes, as halves of bytes.   (floor 1 · kernels)

    Matrix            float32 or bfloat16
    QuantisedMatrix   int8, one scale per row
    Int4Matrix        four bits, one scale per group of 32 along a row

All have `weight`, the matrix that is meant; `rows`, some rows of it in float32; `part`, rows that follow each
other as they lie; and `n_bytes`, what a product reads.
"""

from typing import final

import torch
from jaxtyping import BFloat16, Float, Float32, Int8, Int64, UInt8
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels import native
from winnow.kernels.operands import DTYPE_CODES, aligned_bytes, check_dtype, check_memory, int4

GROUP = 32  # weights of int4 that share a scale
MOST_BYTES = 1 << 16  # weights in a row of int8: their products are summed in 32 bits
_LARGEST_INT8 = 127
_SMALLEST_INT4, _LARGEST_INT4 = -8, 7


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
                weight.data_ptr(), *weight.shape, weight.stride(0), DTYPE_CODES[weight.dtype], 0
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
        """Return an uninitialised [n_rows, width] matrix on huge pages, to be filled through `.weight`."""
        check_dtype("dtype", dtype)
        memory = aligned_bytes(n_rows * width * dtype.itemsize)
        return cls(memory.view(dtype).view(n_rows, width))


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
        """Wrap `values` int8 [M, D] and `scales` float32 [M], both contiguous, never copied."""
        if values.dtype != torch.int8 or values.ndim != 2 or not 0 < values.shape[1] <= MOST_BYTES:
            raise UsageError(
                f"values are {values.dtype} {tuple(values.shape)}, expected int8 [M, D] with D in "
                f"1..{MOST_BYTES}."
            )
        if scales.dtype != torch.float32 or scales.shape != values.shape[:1]:
            raise UsageError(
                f"scales are {scales.dtype} {tuple(scales.shape)}, expected float32 [{len(values)}]."
            )
        for name, tensor in (("values", values), ("scales", scales)):
            check_memory(name, tensor)
            if not tensor.is_contiguous():
                raise UsageError(f"{name} are not contiguous: pass {name}.contiguous().")
        self.values = values
        self.scales = scales
        self.handle = None
        if native.module is not None:
            self.handle = native.module.Matrix(
                values.data_ptr(), *values.shape, values.stride(0), DTYPE_CODES[torch.int8], scales.data_ptr()
            )

    @classmethod
    def of(cls, weight: Float[Tensor, "M D"]) -> "QuantisedMatrix":
        """Return `weight` rounded to the nearest int8 of each row; a row of zeros stays one."""
        values, scales = to_int8(weight)
        return cls(_on_huge_pages(values), scales)

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
    together 4.5 bits a weight. A group's entries are off by at most half its scale, the one at the far end by
    a whole one; the scale is its largest magnitude over 8. The input of a product is rounded to 8 bits of the
    largest magnitude among its 32 neighbours where the processor multiplies bytes (avx512), a tenth of what
    the weights lose, and not at all elsewhere. Raises UsageError where D is no multiple of 32, and for
    another rank, dtype or layout.
    """

    __slots__ = ("groups", "handle", "scales")
    dtype = int4

    def __init__(self, groups: UInt8[Tensor, "M D_half"], scales: BFloat16[Tensor, "M D_groups"]) -> None:
        """Wrap both, contiguous, never copied."""
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
            if not tensor.is_contiguous():
                raise UsageError(f"{name} are not contiguous: pass {name}.contiguous().")
        self.groups = groups
        self.scales = scales
        self.handle = None
        if native.module is not None:
            width = 2 * groups.shape[1]
            self.handle = native.module.Matrix(
                groups.data_ptr(), len(groups), width, width, DTYPE_CODES[int4], scales.data_ptr()
            )

    @classmethod
    def of(cls, weight: Float[Tensor, "M D"]) -> "Int4Matrix":
        """Return `weight` rounded to the nearest of each group's sixteen values."""
        groups, scales = to_int4(weight)
        return cls(_on_huge_pages(groups), _on_huge_pages(scales))

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


AnyMatrix = Matrix | QuantisedMatrix | Int4Matrix


def to_int8(weight: Float[Tensor, "N D"]) -> tuple[Int8[Tensor, "N D"], Float32[Tensor, " N"]]:
    """Return the nearest int8 of each row and the rows' scales, not finite where the row is not."""
    scales = weight.abs().amax(-1).float() / _LARGEST_INT8
    steps = weight.float() / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return steps.round_().to(torch.int8), scales


def to_int4(weight: Float[Tensor, "N D"]) -> tuple[UInt8[Tensor, "N D_half"], BFloat16[Tensor, "N D_groups"]]:
    """Return the halves of bytes and the scales of each group, as Int4Matrix holds them.

    The largest magnitude of a group becomes -8 times its scale, so that no step of the sixteen is wasted.
    """
    check_int4(weight.shape[-1])
    grouped = weight.float().unflatten(-1, (-1, GROUP))  # N, groups, 32
    peaks = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    scales = (peaks / _SMALLEST_INT4).bfloat16()
    steps = (grouped / torch.where(scales == 0, 1.0, scales.float())).round_()
    steps = steps.clamp_(_SMALLEST_INT4, _LARGEST_INT4).sub_(_SMALLEST_INT4).to(torch.uint8)
    low, high = steps.split(GROUP // 2, -1)
    return (low | high << 4).flatten(1), scales.squeeze(-1)


def from_int4(
    groups: UInt8[Tensor, "N D_half"], scales: BFloat16[Tensor, "N D_groups"]
) -> Float32[Tensor, "N D"]:
    """Return the weights that groups and scales stand for."""
    halves = groups.unflatten(-1, (-1, GROUP // 2))
    steps = torch.cat([halves & 15, halves >> 4], -1).float() + _SMALLEST_INT4
    return (steps * scales.float()[..., None]).flatten(1)


def check_int4(width: int) -> None:
    """Refuse a row length that int4 cannot cut into groups."""
    if width < GROUP or width % GROUP:
        raise UsageError(
            f"int4 packs groups of {GROUP} weights along a row; rows of {width} are no multiple. Use int8."
        )


def matrix(weight: Float[Tensor, "M D"], dtype: torch.dtype) -> AnyMatrix:
    """Return `weight` held as `dtype`: float32, bfloat16, int8 or int4."""
    if dtype == torch.int8:
        return QuantisedMatrix.of(weight)
    if dtype == int4:
        return Int4Matrix.of(weight)
    held = Matrix.empty(weight.shape[0], weight.shape[1], dtype)
    held.weight.copy_(weight)
    return held


def _on_huge_pages(values: Tensor) -> Tensor:
    """Return a copy that starts on a line, on huge pages where it is large: rows are read here and there."""
    held = aligned_bytes(values.nbytes).view(values.dtype).view(values.shape)
    return held.copy_(values)
