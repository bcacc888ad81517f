"""Cpu: what an implementation of the kernels offers, at once or recorded.   (floor 1 · kernels)

The methods of Calls are the hot calls of a decode step. They take operands and C-contiguous float32 numpy
arrays (a torch tensor's `.numpy()` is a view, made once) and write into arrays of the caller. What changes
from step to step stands in cells, arrays of one element, so that a step recorded on a Tape can be run again
and again: one crossing from Python instead of one per kernel. Lengths, positions and index ranges are checked
(ValueError; TypeError for another dtype or layout), so that no call reads or writes outside an array.

A batch [B, D] of at most MOST_BATCH rows reads the weights once; each row's bits are those it has alone.
Lists have a row for each row of the batch, and ascend where there are several.

The functions of the kernel folders take tensors and explain what is wrong.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int32, Int64, UInt16, UInt64

from winnow.kernels.lazy_kv import KvBlock, LazyKv
from winnow.kernels.matrices import AnyMatrix
from winnow.kernels.operands import Activation, BitScan
from winnow.kernels.records import NeuronRecords

MOST_BATCH = 8
Cell = Int64[np.ndarray, "1"]
Cells = Int64[np.ndarray, " B"]
Listed = tuple[Int32[np.ndarray, " _"], Cell]  # room for a list, and how many of it count
Lists = tuple[Int32[np.ndarray, "B _"], Cells]  # a row of room for each row of a batch


@runtime_checkable
class Calls(Protocol):
    """The kernels; every method gives the same bits for any number of threads."""

    def linear(
        self,
        x: Float32[np.ndarray, "B D"],
        matrix: AnyMatrix,
        bias: Float32[np.ndarray, " M"] | None,
        out: Float32[np.ndarray, "B M"],
    ) -> None:
        """Write ``weight @ x + bias`` for every row of x; reads ``M * D * itemsize`` bytes of weight."""
        ...

    def add(self, x: Float32[np.ndarray, " D"], out: Float32[np.ndarray, " D"]) -> None:
        """Add `x` to `out`."""
        ...

    def layer_norm(
        self,
        x: Float32[np.ndarray, "N D"],
        weight: Float32[np.ndarray, " D"],
        bias: Float32[np.ndarray, " D"],
        eps: float,
        out: Float32[np.ndarray, "N D"],
    ) -> None:
        """Write the rows normalised to mean 0 and variance 1; `out` may be `x`."""
        ...

    def rms_norm(
        self,
        x: Float32[np.ndarray, "N D"],
        weight: Float32[np.ndarray, " D"],
        eps: float,
        out: Float32[np.ndarray, "N D"],
    ) -> None:
        """Write the rows normalised to mean square 1; `out` may be `x`."""
        ...

    def rotate(
        self,
        x: Float32[np.ndarray, "H E"],
        cos: Float32[np.ndarray, " half"],
        sin: Float32[np.ndarray, " half"],
    ) -> None:
        """Turn the pairs (j, j + E/2) of each head, in place."""
        ...

    def append_kv(
        self, kv: KvBlock, position: Cell, k: Float32[np.ndarray, "K E"], v: Float32[np.ndarray, "K E"]
    ) -> None:
        """Store the key and the value of one position, rounded to the dtype of the cache."""
        ...

    def attend(
        self,
        q: Float32[np.ndarray, "H E"],
        kv: KvBlock,
        position: Cell,
        window: int,
        scale: float,
        out: Float32[np.ndarray, "H E"],
        heads: Listed | None = None,
    ) -> None:
        """Write the attention of `q`, which stands at `position`, over it and those before it.

        ``window > 0`` hides all but the last `window` of them. With `heads`, only the heads that share
        one of these kv heads are computed, and no other keys or values read.
        """
        ...

    def due_heads(self, lazy: LazyKv, position: Cell, selected: Listed, due: Listed, most: Cell) -> None:
        """List the heads due, those selected and those that waited longest; write the most that one lacks."""
        ...

    def missing_kv(self, x: Float32[np.ndarray, " D"], lazy: LazyKv, position: Cell, heads: Listed) -> None:
        """Keep `x`, the input at `position`; store keys and values that the listed heads lack up to it."""
        ...

    def gathered_rows(
        self,
        x: Float32[np.ndarray, "B D"],
        matrix: AnyMatrix,
        bias: Float32[np.ndarray, " M"] | None,
        blocks: Int32[np.ndarray, "B K"],
        count: Cells,
        out: Float32[np.ndarray, "B M"],
    ) -> None:
        """Write ``weight @ x + bias`` in the rows of a row's first `count` listed blocks, K blocks in all."""
        ...

    def gathered_columns(
        self,
        a: Float32[np.ndarray, "B M"],
        matrix: AnyMatrix,
        bias: Float32[np.ndarray, " D"] | None,
        blocks: Int32[np.ndarray, "B K"],
        count: Cells,
        out: Float32[np.ndarray, "B D"],
    ) -> None:
        """Write the product with the columns of a row's first `count` listed blocks, plus `bias`.

        K blocks in all; `matrix` holds the weights [D, M] as `by_blocks` lays them out.
        """
        ...

    def active_set(
        self,
        x: Float32[np.ndarray, "B D"],
        p1: AnyMatrix,
        p2: AnyMatrix,
        bias: Float32[np.ndarray, " F"],
        cap: int,
        indices: Int32[np.ndarray, "B F"],
        count: Cells,
    ) -> None:
        """Write the neurons whose predicted pre-activation is above 0, ascending, and how many."""
        ...

    def sign_set(
        self,
        projected: Float32[np.ndarray, "B n_signs"],
        signs: UInt64[np.ndarray, "F words"],
        cosines: Float32[np.ndarray, " _"],
        sizes: Float32[np.ndarray, " F"],
        bias: Float32[np.ndarray, " F"],
        indices: Int32[np.ndarray, "B F"],
        count: Cells,
    ) -> None:
        """Write the neurons whose score by shared signs is above 0, ascending, and how many."""
        ...

    def gate_set(
        self,
        x: Float32[np.ndarray, "B D"],
        records: NeuronRecords,
        thresholds: Float32[np.ndarray, " F"],
        activation: Activation,
        indices: Int32[np.ndarray, "B F"],
        count: Cells,
        gates: Float32[np.ndarray, "B F"],
    ) -> None:
        """Write all activated gates and the neurons above their thresholds, ascending, and how many.

        Gated records only; reads their gate rows and biases.
        """
        ...

    def gathered_mlp(
        self,
        x: Float32[np.ndarray, "B D"],
        records: NeuronRecords,
        indices: Int32[np.ndarray, "B room"],
        count: Cells,
        activation: Activation,
        out: Float32[np.ndarray, "B D"],
        gates: Float32[np.ndarray, "B F"] | None = None,
    ) -> None:
        """Write the MLP's output over a row's first `count` listed neurons only, each read once.

        With `gates`, the activated gates of all neurons by `gate_set`, gate rows are not read; gated records
        only, the same bits.
        """
        ...

    def dense_mlp(
        self,
        x: Float32[np.ndarray, "B D"],
        records: NeuronRecords,
        activation: Activation,
        out: Float32[np.ndarray, "B D"],
    ) -> None:
        """Write the MLP's output over all neurons, reading every byte, in `gathered_mlp`'s order."""
        ...

    def unpack(
        self,
        matrix: AnyMatrix,
        first: int,
        out: Float32[np.ndarray, "N D"] | UInt16[np.ndarray, "N D"],
    ) -> None:
        """Fill `out` with rows of weight from `first` on: float32, or the bits of bfloat16."""
        ...

    def clock(self, out: Float64[np.ndarray, "1"]) -> None:
        """Write the seconds of a clock that only grows, as they are when the call runs."""
        ...


@runtime_checkable
class Tape(Calls, Protocol):
    """Calls are recorded, with the arrays and operands they name, and run together in order."""

    def run(self) -> None:
        """Make the recorded calls; the first that fails ends the run."""
        ...


@runtime_checkable
class Cpu(Calls, Protocol):
    """The kernels on the CPU: each call runs as it is made."""

    @property
    def threads(self) -> int:
        """The number of threads, the caller's among them."""
        ...

    @property
    def isa(self) -> str:
        """The instruction set in use, one of `isa_levels()`, or "torch" for the definitions."""
        ...

    def tape(self) -> Tape:
        """Return an empty tape, to be run by this object's threads."""
        ...

    def read_bandwidth(self, n_bytes: int, seconds: float) -> float:
        """Return the best rate in bytes per second of reading `n_bytes` of fresh memory with all threads."""
        ...

    @property
    def bit_path(self) -> str:
        """How bits are counted: "vpopcntdq", "tables", "portable", or "torch" for the definitions."""
        ...

    def bit_products(self, scan: BitScan, out: Int32[np.ndarray, "3 room"]) -> tuple[int, int]:
        """Write row, column, distance of the pairs found, in any order; return how many, and the survivors.

        Pairs past the room are counted and not written.
        """
        ...

    def bit_distances(
        self,
        a: UInt64[np.ndarray, "N words"],
        b: UInt64[np.ndarray, "M words"],
        rows: Int32[np.ndarray, " pairs"],
        columns: Int32[np.ndarray, " pairs"],
        out: Int32[np.ndarray, " pairs"],
    ) -> None:
        """Write in how many bits the rows of each listed pair differ."""
        ...

    def bit_keys(
        self,
        planes: UInt64[np.ndarray, "words stride"],
        positions: Int32[np.ndarray, " bits"],
        out: UInt64[np.ndarray, " stride"],
    ) -> None:
        """Write for each column its bits at at most 64 positions, the first one lowest."""
        ...

    def pack_signs(self, signs: Int8[np.ndarray, "N width"], out: UInt64[np.ndarray, "N words"]) -> bool:
        """Write +-1 as bits, 1 for +1; return False where something else stood among them."""
        ...
