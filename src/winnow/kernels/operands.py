"""Operands: what they have in common; sets of bits.   (floor 1 · kernels)

Each operand holds torch tensors and, with the compiled kernels, a native handle to the same memory. Shapes,
dtypes and strides are checked when it is made, once, so that the hot calls need not look again.
"""

import contextlib
import mmap
import sys
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import UInt8, UInt64
from torch import Tensor

from winnow.base.errors import UsageError

RECORD_ALIGNMENT_BYTES = 64
HUGE_PAGE_BYTES = 2 << 20
int4: torch.dtype = torch.int4  # pyright: ignore (torch has it, its stubs do not)
# How the native side knows a type of weight. int8 and int4 come with scales.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, int4: 3}
CODED = 4  # bfloat16 again, in twelve bits
FLOATS = (torch.float32, torch.bfloat16)


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
    """Return memory of no particular content that starts on a 64-byte line, large blocks on huge pages.

    A block of half a huge page or more is a mapping of its own: what the C library hands out may have been
    touched before, in small pages, and stays so. A last huge page that is used by less than half is left in
    small ones, so that at most 1 MB is held beside a block. The mapping ends with its last tensor. Without
    huge pages, or where the system has none left, small ones are used.
    """
    if n_bytes < HUGE_PAGE_BYTES // 2 or sys.platform != "linux":
        memory = torch.empty(n_bytes + RECORD_ALIGNMENT_BYTES, dtype=torch.uint8)
        skip = -memory.data_ptr() % RECORD_ALIGNMENT_BYTES
        return memory[skip : skip + n_bytes]
    n_huge = (n_bytes + HUGE_PAGE_BYTES // 2) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    room = max(n_bytes, n_huge) + HUGE_PAGE_BYTES  # never touched, the rest of it costs address space alone
    mapping = mmap.mmap(-1, room, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(mapping, dtype=torch.uint8)
    skip = -memory.data_ptr() % HUGE_PAGE_BYTES
    with contextlib.suppress(OSError):  # a kernel built without them
        mapping.madvise(mmap.MADV_HUGEPAGE, skip, n_huge)
    return memory[skip : skip + n_bytes]


@final
@dataclass(frozen=True)
class BitScan:
    """Rows against columns, both +-1 vectors as bits; the columns' words are planes, a multiple of 8 wide.

    Pairs that differ in at most `limit` bits survive. With whole vectors, of `limit_whole`, these decide
    which of the survivors are found. Row r meets the columns above ``after + r``, all where it is None.
    """

    rows: UInt64[np.ndarray, "N words"]
    planes: UInt64[np.ndarray, "_ stride"]  # as many words
    n_columns: int
    limit: int
    whole_rows: UInt64[np.ndarray, "_ whole"] | None = None
    whole_columns: UInt64[np.ndarray, "M _"] | None = None
    limit_whole: int = 0
    after: int | None = None


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Refuse what is neither float32 nor bfloat16."""
    if dtype not in FLOATS:
        raise UsageError(
            f"{name} is {dtype}, expected torch.float32 or torch.bfloat16: convert it with .to()."
        )


def check_memory(name: str, tensor: Tensor) -> None:
    """Refuse what the kernels cannot point to."""
    if tensor.device.type != "cpu":
        raise UsageError(f"{name} lies on {tensor.device}, expected the CPU: pass {name}.cpu().")
