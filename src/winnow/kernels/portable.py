"""ReferenceCpu: the kernels by their definitions, in plain torch.   (floor 1 · kernels)

The implementation for machines without a compiler, and the oracle of the tests. Threads are torch's own.
"""

import time
from collections.abc import Callable
from typing import final

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int8, Int32, UInt16, UInt64

from winnow.kernels.active_set.reference import active_set_reference
from winnow.kernels.active_set.sign_set.reference import sign_set_reference
from winnow.kernels.add.reference import add_reference
from winnow.kernels.bit_products.reference import (
    bit_distances_reference,
    bit_products_reference,
    pack_signs_reference,
)
from winnow.kernels.cpu import Cell, Cells, Listed
from winnow.kernels.decode_attention.reference import attend_reference
from winnow.kernels.gate_set.reference import gate_set_reference
from winnow.kernels.gathered_linear.layout import from_blocks
from winnow.kernels.gathered_linear.reference import (
    gathered_columns_reference,
    gathered_rows_reference,
)
from winnow.kernels.gathered_mlp.reference import dense_mlp_reference, gathered_mlp_reference
from winnow.kernels.lazy_kv import KvBlock, LazyKv
from winnow.kernels.linear.reference import linear_reference
from winnow.kernels.matrices import AnyMatrix
from winnow.kernels.missing_kv.reference import due_heads_reference, missing_kv_reference
from winnow.kernels.norm.reference import layer_norm_reference, rms_norm_reference
from winnow.kernels.operands import Activation, BitScan
from winnow.kernels.records import NeuronRecords
from winnow.kernels.rotary.reference import rotate_reference
from winnow.kernels.unpack.reference import unpack_reference

Array = Float32[np.ndarray, "..."]
List = Int32[np.ndarray, "..."]
Words = UInt64[np.ndarray, "..."]
Bits = UInt16[np.ndarray, "..."]  # of bfloat16


class _ReferenceCalls:
    """Every kernel by its reference; the laws are those of `Calls`."""

    def _take(self, call: Callable[[], None]) -> None:
        """Make the call, or keep it."""
        raise NotImplementedError

    def linear(self, x: Array, matrix: AnyMatrix, bias: Array | None, out: Array) -> None:
        """Write ``weight @ x + bias``."""
        shift = None if bias is None else torch.from_numpy(bias)

        def multiply() -> None:
            for one, y in zip(x, out, strict=True):
                _write(y, linear_reference(torch.from_numpy(one), matrix.weight, shift))

        self._take(multiply)

    def add(self, x: Array, out: Array) -> None:
        """Add `x` to `out`."""
        self._take(lambda: _write(out, add_reference(torch.from_numpy(x), torch.from_numpy(out))))

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float, out: Array) -> None:
        """Write the rows normalised to mean 0 and variance 1."""
        tensors = torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(bias)
        self._take(lambda: _write(out, layer_norm_reference(*tensors, eps)))

    def rms_norm(self, x: Array, weight: Array, eps: float, out: Array) -> None:
        """Write the rows normalised to mean square 1."""
        tensors = torch.from_numpy(x), torch.from_numpy(weight)
        self._take(lambda: _write(out, rms_norm_reference(*tensors, eps)))

    def rotate(self, x: Array, cos: Array, sin: Array) -> None:
        """Turn the pairs (j, j + E/2) of each head, in place."""
        tensors = torch.from_numpy(x), torch.from_numpy(cos), torch.from_numpy(sin)
        self._take(lambda: _write(x, rotate_reference(*tensors)))

    def append_kv(self, kv: KvBlock, position: Cell, k: Array, v: Array) -> None:
        """Store the key and the value of one position."""

        def store() -> None:
            at = _position(kv, position)
            kv.put(at, torch.from_numpy(k)[:, None], torch.from_numpy(v)[:, None])

        self._take(store)

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

        def mix() -> None:
            end = _position(kv, position) + 1
            start = max(end - window, 0) if window else 0
            mixed = attend_reference(torch.from_numpy(q), *kv.floats(start, end), scale)
            if heads is None:
                _write(out, mixed)
                return
            grouped = out.reshape(kv.n_kv_heads, -1)
            chosen = heads[0][: int(heads[1][0])]
            grouped[chosen] = mixed.numpy().reshape(kv.n_kv_heads, -1)[chosen]

        self._take(mix)

    def due_heads(self, lazy: LazyKv, position: Cell, selected: Listed, due: Listed, most: Cell) -> None:
        """List the heads due, those selected and those that waited longest; write the most that one lacks."""

        def choose() -> None:
            missing = _kept(lazy, position)
            listed = due_heads_reference(torch.from_numpy(missing), _listed(*selected), lazy.window)
            _list(*due, listed)
            most[0] = missing[listed.numpy()].max(initial=0)

        self._take(choose)

    def missing_kv(self, x: Array, lazy: LazyKv, position: Cell, heads: Listed) -> None:
        """Keep `x`, the input at `position`; store keys and values that the listed heads lack up to it."""

        def fill() -> None:
            missing, at = _kept(lazy, position), int(position[0])
            lazy.inputs[at % lazy.window] = x
            for head in heads[0][: int(heads[1][0])].tolist():
                if missing[head]:
                    _fill(lazy, head, at)

        self._take(fill)

    def gathered_rows(
        self, x: Array, matrix: AnyMatrix, bias: Array | None, blocks: List, count: Cells, out: Array
    ) -> None:
        """Write ``weight @ x + bias`` in the rows of the first `count` listed blocks."""

        def compute() -> None:
            for one, listed, n, y in zip(x, blocks, count, out, strict=True):
                chosen = torch.from_numpy(listed[:n])
                result = gathered_rows_reference(torch.from_numpy(one), matrix.weight, chosen, len(listed))
                kept = np.isin(np.arange(len(y)) // (len(y) // len(listed)), listed[:n])
                y[kept] = (result.numpy() if bias is None else result.numpy() + bias)[kept]

        self._take(compute)

    def gathered_columns(
        self, a: Array, matrix: AnyMatrix, bias: Array | None, blocks: List, count: Cells, out: Array
    ) -> None:
        """Write the product with the columns of the listed blocks, plus `bias`."""

        def compute() -> None:
            for one, listed, n, y in zip(a, blocks, count, out, strict=True):
                chosen = torch.from_numpy(listed[:n])
                weight = from_blocks(matrix.weight, len(listed))
                result = gathered_columns_reference(torch.from_numpy(one), weight, chosen, len(listed))
                _write(y, result if bias is None else result + torch.from_numpy(bias))

        self._take(compute)

    def active_set(
        self, x: Array, p1: AnyMatrix, p2: AnyMatrix, bias: Array, cap: int, indices: List, count: Cells
    ) -> None:
        """Write the neurons whose predicted pre-activation is above 0, ascending, and how many."""
        shift = torch.from_numpy(bias)

        def select() -> None:
            for b, one in enumerate(x):
                chosen = active_set_reference(torch.from_numpy(one), p1.weight, p2.weight, shift, cap)
                _list(indices[b], count[b:], chosen)

        self._take(select)

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

        def select() -> None:
            for b, one in enumerate(projected):
                chosen = sign_set_reference(one, signs, cosines, sizes, bias)
                _list(indices[b], count[b:], torch.from_numpy(chosen))

        self._take(select)

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
        if not records.is_gated:
            raise ValueError("the records are ungated, expected gated ones.")

        def select() -> None:
            shift = torch.from_numpy(thresholds)
            for b, one in enumerate(x):
                chosen, values = gate_set_reference(torch.from_numpy(one), records, shift, activation)
                _list(indices[b], count[b:], chosen)
                _write(gates[b], values)

        self._take(select)

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
        if gates is not None and not records.is_gated:
            raise ValueError("the records are ungated, expected gated ones.")

        def compute() -> None:
            for b, one in enumerate(x):
                chosen = torch.from_numpy(indices[b, : int(count[b])])
                known = None if gates is None else torch.from_numpy(gates[b])
                result = gathered_mlp_reference(torch.from_numpy(one), records, chosen, activation, known)
                _write(out[b], result)

        self._take(compute)

    def dense_mlp(self, x: Array, records: NeuronRecords, activation: Activation, out: Array) -> None:
        """Write the MLP's output over all neurons."""

        def compute() -> None:
            for one, y in zip(x, out, strict=True):
                _write(y, dense_mlp_reference(torch.from_numpy(one), records, activation))

        self._take(compute)

    def unpack(self, matrix: AnyMatrix, first: int, out: Array | Bits) -> None:
        """Fill `out` with rows of weight from `first` on: float32, or the bits of bfloat16."""
        target = torch.from_numpy(out)
        target = target if target.dtype == torch.float32 else target.view(torch.bfloat16)
        if not 0 <= first <= matrix.shape[0] - len(out):
            raise ValueError(f"rows from {first} on, {len(out)} of them, were asked of {matrix.shape[0]}.")

        def write() -> None:
            target.copy_(unpack_reference(matrix, target.dtype)[first : first + len(out)])

        self._take(write)

    def clock(self, out: Float64[np.ndarray, "1"]) -> None:
        """Write the seconds of a clock that only grows."""
        self._take(lambda: out.fill(time.perf_counter()))


@final
class ReferenceTape(_ReferenceCalls):
    """Calls recorded, to be made in order."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._calls: list[Callable[[], None]] = []

    def run(self) -> None:
        """Make the recorded calls; the first that fails ends the run."""
        for call in self._calls:
            call()

    def _take(self, call: Callable[[], None]) -> None:
        self._calls.append(call)


@final
class ReferenceCpu(_ReferenceCalls):
    """Every kernel by its reference, each call run as it is made."""

    isa = "torch"
    bit_path = "torch"

    def __init__(self, threads: int) -> None:
        """Remember `threads`; the arithmetic runs on torch's threads."""
        self.threads = threads

    def tape(self) -> ReferenceTape:
        """Return an empty tape."""
        return ReferenceTape()

    def read_bandwidth(self, n_bytes: int, seconds: float) -> float:
        """Return the best rate, in bytes per second, at which torch sums `n_bytes` of memory."""
        memory = torch.ones(max(n_bytes // 4, 1))
        deadline, best = time.perf_counter() + seconds, 0.0
        while best == 0.0 or time.perf_counter() < deadline:
            started = time.perf_counter()
            memory.sum()
            best = max(best, memory.nbytes / (time.perf_counter() - started))
        return best

    def bit_products(self, scan: BitScan, out: List) -> tuple[int, int]:
        """Write the pairs found; return how many, and the survivors."""
        if len(scan.rows) == 0 or scan.n_columns == 0:
            return 0, 0
        columns = np.ascontiguousarray(scan.planes[:, : scan.n_columns].T)
        found = bit_products_reference(scan.rows, columns, scan.limit)
        if scan.after is not None:
            found = found[found[:, 1] > found[:, 0] + scan.after]
        survivors = len(found)
        if scan.whole_rows is not None and scan.whole_columns is not None:
            whole = scan.whole_rows[found[:, 0]], scan.whole_columns[found[:, 1]]
            found[:, 2] = bit_distances_reference(*whole)
            found = found[found[:, 2] <= scan.limit_whole]
        out[:, : len(found)] = found[: out.shape[1]].T
        return len(found), survivors

    def bit_distances(self, a: Words, b: Words, rows: List, columns: List, out: List) -> None:
        """Write in how many bits the rows of each listed pair differ."""
        out[:] = bit_distances_reference(a[rows], b[columns])

    def bit_keys(self, planes: Words, positions: List, out: Words) -> None:
        """Write for each column its bits at the positions."""
        out[:] = 0
        for place, position in enumerate(positions.tolist()):
            bit = planes[position // 64] >> np.uint64(position % 64) & np.uint64(1)
            out |= bit << np.uint64(place)

    def pack_signs(self, signs: Int8[np.ndarray, "N width"], out: Words) -> bool:
        """Write +-1 as bits; return False where something else stood among them."""
        out[:] = pack_signs_reference(signs > 0)
        return bool((np.abs(signs) == 1).all())

    def _take(self, call: Callable[[], None]) -> None:
        call()


def _position(kv: KvBlock, position: Cell) -> int:
    at = int(position[0])
    if not 0 <= at < kv.capacity:
        raise ValueError(f"position {at} lies outside the cache of {kv.capacity}.")
    return at


def _kept(lazy: LazyKv, position: Cell) -> np.ndarray:
    """Return what each head lacks, if the inputs are still there."""
    at = _position(lazy.kv, position)
    missing = lazy.missing(at)
    for head in np.flatnonzero((lazy.filled < 0) | (missing > lazy.window)):
        held, least = lazy.filled[head], lazy.window - 1
        raise ValueError(f"head {head} holds {held} positions, expected {at} or up to {least} fewer.")
    return missing


def _fill(lazy: LazyKv, head: int, position: int) -> None:
    """Store what one head lacks up to `position`."""
    kv, start, end = lazy.kv, int(lazy.filled[head]), position + 1
    at = np.arange(start, end) % lazy.window
    firsts = [part * kv.head_width for part in (head, kv.n_kv_heads + head)]  # rows of keys, of values
    weight = torch.cat([lazy.matrix.part(first, first + kv.head_width).weight for first in firsts])
    rows = np.concatenate([np.arange(first, first + kv.head_width) for first in firsts])
    bias = None if lazy.bias is None else torch.from_numpy(lazy.bias[rows])
    norm = None if lazy.norm is None else (torch.from_numpy(lazy.norm[0]), lazy.norm[1])
    cos, sin = lazy.angles or (None, None)
    angles = None if cos is None or sin is None else (torch.from_numpy(cos[at]), torch.from_numpy(sin[at]))
    k, v = missing_kv_reference(torch.from_numpy(lazy.inputs[at]), weight, bias, norm, angles)
    kv.put(start, k[None], v[None], head)
    lazy.filled[head] = end


def _listed(blocks: List, count: Cell) -> torch.Tensor:
    return torch.from_numpy(blocks[: int(count[0])])


def _list(indices: List, count: Cells, chosen: torch.Tensor) -> None:
    indices[: len(chosen)] = chosen.numpy()
    count[0] = len(chosen)


def _write(out: np.ndarray, result: torch.Tensor) -> None:
    torch.from_numpy(out).copy_(result)
