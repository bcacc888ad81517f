"""Records: the weights of an MLP, one record per neuron.   (floor 1 · kernels)"""

from typing import final

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels import native
from winnow.kernels.matrices import MOST_BYTES, AnyMatrix, CodedMatrix, Int4Matrix, Matrix, QuantisedMatrix
from winnow.kernels.operands import (
    CODED,
    DTYPE_CODES,
    RECORD_ALIGNMENT_BYTES,
    aligned_bytes,
    check_memory,
    int4,
)
from winnow.kernels.pack import GROUP, can_code, check_int4, coded_row_bytes

_PARTS = ("w_in", "w_up", "w_out")  # in the order of a record


@final
class NeuronRecords:
    """The weights of an MLP, one 64-byte aligned record per neuron, so that a neuron is one stream of memory.

        ungated   [ w_in (D) | w_out (D) | bias ]
        gated     [ w_gate (D) | w_up (D) | w_out (D) | bias_gate, bias_up ]
        int8      the same, then the float32 scale of each part
        int4      the groups of each part (Int4Matrix), then their bfloat16 scales, then the biases
        coded     the coded row of each part (CodedMatrix), then the biases; of dtype bfloat16

    Biases are float32. `w_in` is the gate matrix of a gated MLP. The weights' properties are views of float
    records (writing to them writes the record) and copies of the others, in bfloat16 of coded ones, else in
    float32; those of the biases are views. Biases start at zero, weights uninitialised.
    """

    __slots__ = (
        "_scales_offset_bytes",
        "_tail_offset_bytes",
        "dtype",
        "handle",
        "is_coded",
        "is_gated",
        "n_neurons",
        "record_bytes",
        "storage",
        "width",
    )

    def __init__(
        self,
        storage: UInt8[Tensor, "F bytes"],
        width: int,
        dtype: torch.dtype,
        is_gated: bool,
        is_coded: bool = False,
    ) -> None:
        """Wrap memory laid out as above; use `pack` or `empty` to make it."""
        self.storage = storage
        self.n_neurons = storage.shape[0]
        self.width = width
        self.dtype = dtype
        self.is_gated = is_gated
        self.is_coded = is_coded
        self._scales_offset_bytes, self._tail_offset_bytes, self.record_bytes = _layout(
            width, dtype, is_gated, is_coded
        )
        check_memory("storage", storage)
        if storage.shape[1] != self.record_bytes or not storage.is_contiguous():
            raise UsageError(
                f"storage has shape {tuple(storage.shape)} and stride {storage.stride()}, "
                f"expected contiguous [F, {self.record_bytes}] for width {width}."
            )
        if storage.data_ptr() % RECORD_ALIGNMENT_BYTES:
            raise UsageError("storage does not start on a 64-byte line: make it with NeuronRecords.empty.")
        self.handle = None
        if native.module is not None:
            code = CODED if is_coded else DTYPE_CODES[dtype]
            self.handle = native.module.NeuronRecords(
                storage.data_ptr(), self.n_neurons, width, self.record_bytes, code, is_gated
            )

    @classmethod
    def empty(
        cls,
        n_neurons: int,
        width: int,
        dtype: torch.dtype,
        is_gated: bool = False,
        is_coded: bool = False,
    ) -> "NeuronRecords":
        """Return records with zero biases and uninitialised weights, on huge pages."""
        records = cls.unwritten(n_neurons, width, dtype, is_gated, is_coded)
        # With the three bytes before it, some of which may lie between weights and tail: equal weights are
        # equal records.
        records.storage[:, max(0, records._tail_offset_bytes - 3) :] = 0
        return records

    @classmethod
    def unwritten(
        cls,
        n_neurons: int,
        width: int,
        dtype: torch.dtype,
        is_gated: bool = False,
        is_coded: bool = False,
    ) -> "NeuronRecords":
        """Return records of memory that nobody has touched, on huge pages, to be written as a whole."""
        if dtype not in DTYPE_CODES:
            raise UsageError(f"dtype is {dtype}, expected one of {', '.join(map(str, DTYPE_CODES))}.")
        if n_neurons < 1 or width < 1:
            raise UsageError(
                f"received {n_neurons} neurons of width {width}, expected at least 1 of width 1."
            )
        if dtype == torch.int8 and width > MOST_BYTES:
            raise UsageError(f"int8 holds rows of at most {MOST_BYTES} weights, these have {width}.")
        if dtype == int4:
            check_int4(width)
        if is_coded and (dtype != torch.bfloat16 or not can_code(width)):
            raise UsageError(
                f"coded records of {dtype} and width {width} were asked for, expected torch.bfloat16 and a "
                "multiple of 128 in 256..16384."
            )
        _, _, record_bytes = _layout(width, dtype, is_gated, is_coded)
        storage = aligned_bytes(n_neurons * record_bytes).view(n_neurons, record_bytes)
        return cls(storage, width, dtype, is_gated, is_coded)

    @classmethod
    def pack(
        cls,
        w_in: Float[Tensor, "F D"],
        w_out_t: Float[Tensor, "F D"],
        bias: Float[Tensor, " F"] | None = None,
        w_up: Float[Tensor, "F D"] | None = None,
        b_up: Float[Tensor, " F"] | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> "NeuronRecords":
        """Return records holding the given tensors, rounded to `dtype`, which is `w_in`'s if left out.

        `w_up` makes them gated.
        """
        if b_up is not None and w_up is None:
            raise UsageError("b_up was given without w_up, expected both or neither.")
        n_neurons, width = w_in.shape
        records = cls.empty(n_neurons, width, w_in.dtype if dtype is None else dtype, w_up is not None)
        parts = [w_in, w_out_t] if w_up is None else [w_in, w_up, w_out_t]
        for name, part in zip(("w_in", "w_out") if w_up is None else _PARTS, parts, strict=True):
            records.put(name, part)
        if bias is not None:
            records.bias.copy_(bias)
        if b_up is not None:
            records.bias_up.copy_(b_up)
        return records

    def put(self, part: str, weight: Float[Tensor, "F D"]) -> bool:
        """Write the rows of "w_in", "w_up" or "w_out", rounded to the records' type.

        Returns False, with rows unwritten, where the records are coded and `weight` cannot be.
        """
        rows = self.part(part)
        if isinstance(rows, CodedMatrix):
            return rows.put(weight)
        rows.put(weight)
        return True

    def part(self, name: str) -> AnyMatrix:
        """Return the rows of "w_in", "w_up" or "w_out" as a matrix in the records' memory."""
        if name == "w_up":
            self._check_gated(name)
        number = self._n_parts - 1 if name == "w_out" else _PARTS.index(name)
        if self.is_coded:
            row_bytes = coded_row_bytes(self.width)
            return CodedMatrix(self.storage[:, number * row_bytes : (number + 1) * row_bytes], self.width)
        if self.dtype == int4:
            groups = self.storage[:, number * self.width // 2 : (number + 1) * self.width // 2]
            return Int4Matrix(groups, self._group_scales(number))
        values = self.storage.view(self.dtype)[:, number * self.width : (number + 1) * self.width]
        if self.dtype == torch.int8:
            return QuantisedMatrix(values, self._tail(self._n_parts - 1 + number))
        return Matrix(values)

    @property
    def w_in(self) -> Float[Tensor, "F D"]:
        """The rows whose inner products with the input are activated."""
        return self.part("w_in").weight

    @property
    def w_up(self) -> Float[Tensor, "F D"]:
        """The rows whose inner products multiply the activation; gated records only."""
        return self.part("w_up").weight

    @property
    def w_out(self) -> Float[Tensor, "F D"]:
        """The rows that are summed, weighted by the activations."""
        return self.part("w_out").weight

    @property
    def bias(self) -> Float32[Tensor, " F"]:
        """The bias of `w_in`."""
        return self._tail(0)

    @property
    def bias_up(self) -> Float32[Tensor, " F"]:
        """The bias of `w_up`; gated records only."""
        self._check_gated("bias_up")
        return self._tail(1)

    @property
    def _n_parts(self) -> int:
        return 3 if self.is_gated else 2

    def _group_scales(self, number: int) -> Tensor:
        first = self._scales_offset_bytes // 2 + number * self.width // GROUP
        return self.storage.view(torch.bfloat16)[:, first : first + self.width // GROUP]

    def _tail(self, number: int) -> Tensor:
        return self.storage.view(torch.float32)[:, self._tail_offset_bytes // 4 + number]

    def _check_gated(self, name: str) -> None:
        if not self.is_gated:
            raise UsageError(f"{name} was asked of ungated records: make them with is_gated=True or w_up.")


def _layout(width: int, dtype: torch.dtype, is_gated: bool, is_coded: bool) -> tuple[int, int, int]:
    """Return where the scales of groups and the tail begin, and the length of a record, all in bytes."""
    n_parts = 3 if is_gated else 2
    weights_bytes = n_parts * width // 2 if dtype == int4 else n_parts * width * dtype.itemsize
    if is_coded:
        weights_bytes = n_parts * coded_row_bytes(width)
    scales_bytes = n_parts * width // GROUP * 2 if dtype == int4 else 0
    # A gated bfloat16 record of odd width, say, ends between two floats.
    tail = -(-(weights_bytes + scales_bytes) // 4) * 4
    n_floats = n_parts - 1 + (n_parts if dtype == torch.int8 else 0)
    used = tail + 4 * n_floats
    return weights_bytes, tail, -(-used // RECORD_ALIGNMENT_BYTES) * RECORD_ALIGNMENT_BYTES
