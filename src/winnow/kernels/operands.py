"""Operands: weights and caches in the memory layout the kernels read.   (floor 1 · kernels)

Each operand holds torch tensors and, with the compiled kernels, a native handle to the same memory. Shapes,
dtypes and strides are checked here, once, so that the hot calls need not look again.
"""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels import native

RECORD_ALIGNMENT_BYTES = 64
HUGE_PAGE_BYTES = 2 << 20
_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
_INT8_CODE = 2
_LARGEST_INT8 = 127


@final
@dataclass(frozen=True)
class Activation:
    """The function between the two halves of an MLP; called on a tensor it is the definition."""

    name: Literal["relu", "silu"]
    code: int

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the function elementwise."""
        return torch.relu(x) if self.name == "relu" else torch.nn.functional.silu(x)


relu = Activation("relu", 0)
silu = Activation("silu", 1)


def aligned_bytes(n_bytes: int) -> UInt8[Tensor, " n_bytes"]:
    """Return uninitialised memory that starts on a 64-byte line and asks for huge pages.

    Huge pages are asked for by madvise before the first touch, with the compiled kernels only; large blocks
    start on a huge page, which costs address space and no memory.
    """
    alignment = HUGE_PAGE_BYTES if n_bytes >= 2 * HUGE_PAGE_BYTES else RECORD_ALIGNMENT_BYTES
    memory = torch.empty(n_bytes + alignment, dtype=torch.uint8)
    skip = -memory.data_ptr() % alignment
    memory = memory[skip : skip + n_bytes]
    if native.module is not None:
        native.module.advise_huge_pages(memory.data_ptr(), n_bytes)
    return memory


@final
class Matrix:
    """A weight matrix [M, D] whose rows are read as they lie: float32 or bfloat16, rows contiguous.

    Holds `weight` itself, never a copy. Raises UsageError for another rank, dtype, device or column stride.
    """

    __slots__ = ("handle", "weight")

    def __init__(self, weight: Float[Tensor, "M D"]) -> None:
        """Wrap `weight`; rows may be strided, columns may not."""
        _check_dtype("weight", weight.dtype)
        _check_memory("weight", weight)
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
                weight.data_ptr(), *weight.shape, weight.stride(0), _DTYPE_CODES[weight.dtype], 0
            )

    @property
    def n_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.weight.numel() * self.weight.element_size()

    @classmethod
    def empty(cls, n_rows: int, width: int, dtype: torch.dtype) -> "Matrix":
        """Return an uninitialised [n_rows, width] matrix on huge pages, to be filled through `.weight`."""
        _check_dtype("dtype", dtype)
        memory = aligned_bytes(n_rows * width * dtype.itemsize)
        return cls(memory.view(dtype).view(n_rows, width))


@final
class QuantisedMatrix:
    """A matrix [M, D] held as int8, one float32 scale per row: ``weight = values * scales[:, None]``.

    A row's entries are off by at most half its scale, which is its largest magnitude over 127. The input of a
    product is not rounded. Raises UsageError for another rank, dtype or layout.
    """

    __slots__ = ("handle", "scales", "values")

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        """Wrap `values` int8 [M, D] and `scales` float32 [M], both contiguous, never copied."""
        if values.dtype != torch.int8 or values.ndim != 2 or values.shape[1] == 0:
            raise UsageError(
                f"values are {values.dtype} {tuple(values.shape)}, expected int8 [M, D] with D > 0."
            )
        if scales.dtype != torch.float32 or scales.shape != values.shape[:1]:
            raise UsageError(
                f"scales are {scales.dtype} {tuple(scales.shape)}, expected float32 [{len(values)}]."
            )
        for name, tensor in (("values", values), ("scales", scales)):
            _check_memory(name, tensor)
            if not tensor.is_contiguous():
                raise UsageError(f"{name} are not contiguous: pass {name}.contiguous().")
        self.values = values
        self.scales = scales
        self.handle = None
        if native.module is not None:
            self.handle = native.module.Matrix(
                values.data_ptr(), *values.shape, values.stride(0), _INT8_CODE, scales.data_ptr()
            )

    @classmethod
    def of(cls, weight: Float[Tensor, "M D"]) -> "QuantisedMatrix":
        """Return `weight` rounded to the nearest int8 of each row; a row of zeros stays one."""
        scales = weight.abs().amax(-1).float() / _LARGEST_INT8
        steps = weight / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        return cls(steps.round().to(torch.int8).contiguous(), scales.contiguous())

    @property
    def weight(self) -> Float32[Tensor, "M D"]:
        """The matrix that is meant, made anew at each call."""
        return self.values.float() * self.scales[:, None]

    @property
    def n_bytes(self) -> int:
        """Bytes that one product reads, scales included."""
        return self.values.numel() + 4 * self.scales.numel()


AnyMatrix = Matrix | QuantisedMatrix


@final
class NeuronRecords:
    """The weights of an MLP, one 64-byte aligned record per neuron, so that a neuron is one stream of memory.

        ungated   [ w_in (D) | w_out (D) | bias ]
        gated     [ w_gate (D) | w_up (D) | w_out (D) | bias_gate, bias_up ]

    Weights are float32 or bfloat16, biases float32. `w_in` is the gate matrix of a gated MLP. The properties
    are views: writing to them writes the record. Biases start at zero, weights uninitialised.
    """

    __slots__ = (
        "_bias_offset_bytes",
        "dtype",
        "handle",
        "is_gated",
        "n_neurons",
        "record_bytes",
        "storage",
        "width",
    )

    def __init__(
        self, storage: UInt8[Tensor, "F bytes"], width: int, dtype: torch.dtype, is_gated: bool
    ) -> None:
        """Wrap memory laid out as above; use `pack` or `empty` to make it."""
        self.storage = storage
        self.n_neurons = storage.shape[0]
        self.width = width
        self.dtype = dtype
        self.is_gated = is_gated
        self._bias_offset_bytes, self.record_bytes = _layout(width, dtype, is_gated)
        _check_memory("storage", storage)
        if storage.shape[1] != self.record_bytes or not storage.is_contiguous():
            raise UsageError(
                f"storage has shape {tuple(storage.shape)} and stride {storage.stride()}, "
                f"expected contiguous [F, {self.record_bytes}] for width {width}."
            )
        if storage.data_ptr() % RECORD_ALIGNMENT_BYTES:
            raise UsageError("storage does not start on a 64-byte line: make it with NeuronRecords.empty.")
        self.handle = None
        if native.module is not None:
            self.handle = native.module.NeuronRecords(
                storage.data_ptr(), self.n_neurons, width, self.record_bytes, _DTYPE_CODES[dtype], is_gated
            )

    @classmethod
    def empty(cls, n_neurons: int, width: int, dtype: torch.dtype, is_gated: bool = False) -> "NeuronRecords":
        """Return records with zero biases and uninitialised weights, on huge pages."""
        _check_dtype("dtype", dtype)
        if n_neurons < 1 or width < 1:
            raise UsageError(
                f"received {n_neurons} neurons of width {width}, expected at least 1 of width 1."
            )
        offset, record_bytes = _layout(width, dtype, is_gated)
        storage = aligned_bytes(n_neurons * record_bytes).view(n_neurons, record_bytes)
        storage[:, offset:] = 0
        return cls(storage, width, dtype, is_gated)

    @classmethod
    def pack(
        cls,
        w_in: Float[Tensor, "F D"],
        w_out_t: Float[Tensor, "F D"],
        bias: Float[Tensor, " F"] | None = None,
        w_up: Float[Tensor, "F D"] | None = None,
        b_up: Float[Tensor, " F"] | None = None,
    ) -> "NeuronRecords":
        """Return records of `w_in`'s dtype holding copies of the given tensors; `w_up` makes them gated."""
        if b_up is not None and w_up is None:
            raise UsageError("b_up was given without w_up, expected both or neither.")
        n_neurons, width = w_in.shape
        records = cls.empty(n_neurons, width, w_in.dtype, w_up is not None)
        records.w_in.copy_(w_in)
        records.w_out.copy_(w_out_t)
        if w_up is not None:
            records.w_up.copy_(w_up)
        if bias is not None:
            records.bias.copy_(bias)
        if b_up is not None:
            records.bias_up.copy_(b_up)
        return records

    @property
    def w_in(self) -> Float[Tensor, "F D"]:
        """The rows whose inner products with the input are activated."""
        return self._part(0)

    @property
    def w_up(self) -> Float[Tensor, "F D"]:
        """The rows whose inner products multiply the activation; gated records only."""
        self._check_gated("w_up")
        return self._part(1)

    @property
    def w_out(self) -> Float[Tensor, "F D"]:
        """The rows that are summed, weighted by the activations."""
        return self._part(2 if self.is_gated else 1)

    @property
    def bias(self) -> Float32[Tensor, " F"]:
        """The bias of `w_in`."""
        return self._tail(0)

    @property
    def bias_up(self) -> Float32[Tensor, " F"]:
        """The bias of `w_up`; gated records only."""
        self._check_gated("bias_up")
        return self._tail(1)

    def _part(self, number: int) -> Tensor:
        return self.storage.view(self.dtype)[:, number * self.width : (number + 1) * self.width]

    def _tail(self, number: int) -> Tensor:
        return self.storage.view(torch.float32)[:, self._bias_offset_bytes // 4 + number]

    def _check_gated(self, name: str) -> None:
        if not self.is_gated:
            raise UsageError(f"{name} was asked of ungated records: make them with is_gated=True or w_up.")


@final
class KvBlock:
    """Keys and values of one layer, [K, capacity, E] each, zero at first; a head's keys are one stream."""

    __slots__ = ("capacity", "dtype", "handle", "head_width", "keys", "n_kv_heads", "values")

    def __init__(self, n_kv_heads: int, capacity: int, head_width: int, dtype: torch.dtype) -> None:
        """Allocate room for `capacity` positions."""
        _check_dtype("dtype", dtype)
        shape = (n_kv_heads, capacity, head_width)
        if min(shape) < 1:
            raise UsageError(
                f"KvBlock received kv heads, capacity, head width = {shape}, expected at least 1 each."
            )
        self.n_kv_heads, self.capacity, self.head_width = shape
        self.dtype = dtype
        self.keys = torch.zeros(shape, dtype=dtype)
        self.values = torch.zeros(shape, dtype=dtype)
        self.handle = None
        if native.module is not None:
            self.handle = native.module.KvBlock(
                self.keys.data_ptr(), self.values.data_ptr(), *shape, _DTYPE_CODES[dtype]
            )


def _layout(width: int, dtype: torch.dtype, is_gated: bool) -> tuple[int, int]:
    """Return the offset of the biases and the length of a record, both in bytes."""
    weights_bytes = (3 if is_gated else 2) * width * dtype.itemsize
    offset = -(-weights_bytes // 4) * 4  # a gated bfloat16 record of odd width ends between two floats
    used = offset + (8 if is_gated else 4)
    return offset, -(-used // RECORD_ALIGNMENT_BYTES) * RECORD_ALIGNMENT_BYTES


def _check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in _DTYPE_CODES:
        raise UsageError(
            f"{name} is {dtype}, expected torch.float32 or torch.bfloat16: convert it with .to()."
        )


def _check_memory(name: str, tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise UsageError(f"{name} lies on {tensor.device}, expected the CPU: pass {name}.cpu().")
