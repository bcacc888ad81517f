"""NativeCpu and NativeTape: the compiled kernels.   (floor 1 · kernels)

Each method hands the operands' native handles on; the interpreter lock is released while the kernel runs.
numpy arrays, because a torch tensor costs ten times as much to hand over.
"""

from types import ModuleType
from typing import Any, final

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int32, UInt16, UInt64

from winnow.base.errors import UsageError
from winnow.kernels import native
from winnow.kernels.cpu import Cell, Cells, Listed
from winnow.kernels.lazy_kv import KvBlock, LazyKv
from winnow.kernels.matrices import AnyMatrix
from winnow.kernels.operands import Activation, BitScan
from winnow.kernels.records import NeuronRecords

Array = Float32[np.ndarray, "..."]
List = Int32[np.ndarray, "..."]
Words = UInt64[np.ndarray, "..."]
Bits = UInt16[np.ndarray, "..."]  # of bfloat16


class _NativeCalls:
    """Every kernel compiled for one instruction set; the laws are those of `Calls`."""

    __slots__ = ("_native",)

    def __init__(self, calls: Any) -> None:
        self._native = calls

    def _keep(self, *operands: object) -> None:
        """Hold what a call points to for as long as it may run: nothing, where it has run."""

    def linear(self, x: Array, matrix: AnyMatrix, bias: Array | None, out: Array) -> None:
        """Write ``weight @ x + bias``."""
        self._native.linear(x, matrix.handle, bias, out)
        self._keep(x, matrix, bias, out)

    def add(self, x: Array, out: Array) -> None:
        """Add `x` to `out`."""
        self._native.add(x, out)
        self._keep(x, out)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float, out: Array) -> None:
        """Write the rows normalised to mean 0 and variance 1."""
        self._native.layer_norm(x, weight, bias, eps, out)
        self._keep(x, weight, bias, out)

    def rms_norm(self, x: Array, weight: Array, eps: float, out: Array) -> None:
        """Write the rows normalised to mean square 1."""
        self._native.rms_norm(x, weight, eps, out)
        self._keep(x, weight, out)

    def rotate(self, x: Array, cos: Array, sin: Array) -> None:
        """Turn the pairs (j, j + E/2) of each head, in place."""
        self._native.rotate(x, cos, sin)
        self._keep(x, cos, sin)

    def append_kv(self, kv: KvBlock, position: Cell, k: Array, v: Array) -> None:
        """Store the key and the value of one position."""
        self._native.append_kv(kv.handle, position, k, v)
        self._keep(kv, position, k, v)

    def attend(
        self,
        q: Array,
        kv: KvBlock,
        position: Cell,
        window: int,
        scale: float,
        out: Array,
        heads: Listed | None = None,
    ) -> None:
        """Write the attention of `q` over its own position and those before it, at most `window` if any."""
        self._native.attend(q, kv.handle, position, window, scale, out, *(heads or (None, None)))
        self._keep(q, kv, position, out, heads)

    def due_heads(self, lazy: LazyKv, position: Cell, selected: Listed, due: Listed, most: Cell) -> None:
        """List the heads due, those selected and those that waited longest; write the most that one lacks."""
        self._native.due_heads(lazy.handle, position, *selected, *due, most)
        self._keep(lazy, position, selected, due, most)

    def missing_kv(self, x: Array, lazy: LazyKv, position: Cell, heads: Listed) -> None:
        """Keep `x`, the input at `position`; store keys and values that the listed heads lack up to it."""
        self._native.missing_kv(x, lazy.handle, position, *heads)
        self._keep(x, lazy, position, heads)

    def gathered_rows(
        self, x: Array, matrix: AnyMatrix, bias: Array | None, blocks: List, count: Cells, out: Array
    ) -> None:
        """Write ``weight @ x + bias`` in the rows of the first `count` listed blocks."""
        self._native.gathered_rows(x, matrix.handle, bias, blocks, count, out)
        self._keep(x, matrix, bias, blocks, count, out)

    def gathered_columns(
        self, a: Array, matrix: AnyMatrix, bias: Array | None, blocks: List, count: Cells, out: Array
    ) -> None:
        """Write the product with the columns of the listed blocks, plus `bias`."""
        self._native.gathered_columns(a, matrix.handle, bias, blocks, count, out)
        self._keep(a, matrix, bias, blocks, count, out)

    def active_set(
        self, x: Array, p1: AnyMatrix, p2: AnyMatrix, bias: Array, cap: int, indices: List, count: Cells
    ) -> None:
        """Write the neurons whose predicted pre-activation is above 0, ascending, and how many."""
        self._native.active_set(x, p1.handle, p2.handle, bias, cap, indices, count)
        self._keep(x, p1, p2, bias, indices, count)

    def sign_set(
        self,
        projected: Array,
        signs: Words,
        cosines: Array,
        sizes: Array,
        bias: Array,
        indices: List,
        count: Cells,
    ) -> None:
        """Write the neurons whose score by shared signs is above 0, ascending, and how many."""
        operands = projected, signs, cosines, sizes, bias, indices, count
        self._native.sign_set(*operands)
        self._keep(*operands)

    def gate_set(
        self,
        x: Array,
        records: NeuronRecords,
        thresholds: Array,
        activation: Activation,
        indices: List,
        count: Cells,
        gates: Array,
    ) -> None:
        """Write all activated gates and the neurons above their thresholds, ascending, and how many."""
        self._native.gate_set(x, records.handle, thresholds, activation.code, indices, count, gates)
        self._keep(x, records, thresholds, indices, count, gates)

    def gathered_mlp(
        self,
        x: Array,
        records: NeuronRecords,
        indices: List,
        count: Cells,
        activation: Activation,
        out: Array,
        gates: Array | None = None,
    ) -> None:
        """Write the MLP's output over the first `count` of the listed neurons only."""
        self._native.gathered_mlp(x, records.handle, indices, count, activation.code, out, gates)
        self._keep(x, records, indices, count, out, gates)

    def dense_mlp(self, x: Array, records: NeuronRecords, activation: Activation, out: Array) -> None:
        """Write the MLP's output over all neurons."""
        self._native.dense_mlp(x, records.handle, activation.code, out)
        self._keep(x, records, out)

    def unpack(self, matrix: AnyMatrix, first: int, out: Array | Bits) -> None:
        """Fill `out` with rows of weight from `first` on: float32, or the bits of bfloat16."""
        self._native.unpack(matrix.handle, first, out)
        self._keep(matrix, out)

    def clock(self, out: Float64[np.ndarray, "1"]) -> None:
        """Write the seconds of a clock that only grows."""
        self._native.clock(out)
        self._keep(out)


@final
class NativeTape(_NativeCalls):
    """Calls recorded for the threads of one NativeCpu."""

    __slots__ = ("_kept",)

    def __init__(self, tape: Any) -> None:
        """Hold nothing yet; made by `NativeCpu.tape`."""
        super().__init__(tape)
        self._kept: list[tuple[object, ...]] = []

    def run(self) -> None:
        """Make the recorded calls; the first that fails ends the run."""
        self._native.run()

    def _keep(self, *operands: object) -> None:
        self._kept.append(operands)


@final
class NativeCpu(_NativeCalls):
    """Every kernel compiled for one instruction set, each call run as it is made."""

    __slots__ = ("_module", "isa", "threads")

    def __init__(self, threads: int, isa: str) -> None:
        """Start the threads; `isa` is one of `isa_levels()`."""
        if native.module is None:
            raise UsageError("NativeCpu was asked for in a build without compiled kernels: use open_cpu.")
        super().__init__(native.module.Cpu(threads, isa))
        self._module: ModuleType = native.module
        self.threads = threads
        self.isa = isa

    def tape(self) -> NativeTape:
        """Return an empty tape."""
        return NativeTape(self._module.Tape(self._native))

    def read_bandwidth(self, n_bytes: int, seconds: float) -> float:
        """Return the best rate in bytes per second of reading `n_bytes` of memory."""
        return self._native.read_bandwidth(n_bytes, seconds)

    @property
    def bit_path(self) -> str:
        """How this processor counts bits at this level."""
        return self._native.bit_path()

    def bit_products(self, scan: BitScan, out: List) -> tuple[int, int]:
        """Write the pairs found, in any order; return how many, and the survivors."""
        whole = scan.whole_rows, scan.whole_columns, scan.limit_whole
        after = -len(scan.rows) - 1 if scan.after is None else scan.after
        return self._native.bit_products(
            scan.rows, scan.planes, scan.n_columns, scan.limit, *whole, after, *out
        )

    def bit_distances(self, a: Words, b: Words, rows: List, columns: List, out: List) -> None:
        """Write in how many bits the rows of each listed pair differ."""
        self._native.bit_distances(a, b, rows, columns, out)

    def bit_keys(self, planes: Words, positions: List, out: Words) -> None:
        """Write for each column its bits at the positions."""
        self._native.bit_keys(planes, positions, out)

    def pack_signs(self, signs: Int8[np.ndarray, "N width"], out: Words) -> bool:
        """Write +-1 as bits; return False where something else stood among them."""
        return self._native.pack_signs(signs, out)
