"""NativeCpu: the compiled kernels.   (floor 1 · kernels)

Each method hands the operands' native handles on; the interpreter lock is released while the kernel runs.
numpy arrays, because a torch tensor costs ten times as much to hand over.
"""

from typing import final

import numpy as np
from jaxtyping import Float32, Int32

from winnow.base.errors import UsageError
from winnow.kernels import native
from winnow.kernels.operands import Activation, AnyMatrix, KvBlock, NeuronRecords

Array = Float32[np.ndarray, "..."]


@final
class NativeCpu:
    """Every kernel compiled for one instruction set; the laws are those of `Cpu`."""

    __slots__ = ("_native", "isa", "threads")

    def __init__(self, threads: int, isa: str) -> None:
        """Start the threads; `isa` is one of `isa_levels()`."""
        if native.module is None:
            raise UsageError("NativeCpu was asked for in a build without compiled kernels: use open_cpu.")
        self._native = native.module.Cpu(threads, isa)
        self.threads = threads
        self.isa = isa

    def linear(self, x: Array, matrix: AnyMatrix, bias: Array | None, out: Array) -> None:
        """Write ``weight @ x + bias``."""
        self._native.linear(x, matrix.handle, bias, out)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float, out: Array) -> None:
        """Write the rows normalised to mean 0 and variance 1."""
        self._native.layer_norm(x, weight, bias, eps, out)

    def rms_norm(self, x: Array, weight: Array, eps: float, out: Array) -> None:
        """Write the rows normalised to mean square 1."""
        self._native.rms_norm(x, weight, eps, out)

    def rotate(self, x: Array, cos: Array, sin: Array) -> None:
        """Turn the pairs (j, j + E/2) of each head, in place."""
        self._native.rotate(x, cos, sin)

    def append_kv(self, kv: KvBlock, position: int, k: Array, v: Array) -> None:
        """Store the key and the value of one position."""
        self._native.append_kv(kv.handle, position, k, v)

    def attend(self, q: Array, kv: KvBlock, start: int, length: int, scale: float, out: Array) -> None:
        """Write the attention of `q` over the positions start..length-1."""
        self._native.attend(q, kv.handle, start, length, scale, out)

    def active_set(
        self, x: Array, p1: AnyMatrix, p2: AnyMatrix, bias: Array, cap: int, indices: Int32[np.ndarray, " F"]
    ) -> int:
        """Write the neurons whose predicted pre-activation is above 0, ascending; return how many."""
        return self._native.active_set(x, p1.handle, p2.handle, bias, cap, indices)

    def gate_set(
        self,
        x: Array,
        records: NeuronRecords,
        thresholds: Array,
        activation: Activation,
        indices: Int32[np.ndarray, " F"],
        gates: Array,
    ) -> int:
        """Write all activated gates and the neurons above their thresholds, ascending; return how many."""
        return self._native.gate_set(x, records.handle, thresholds, activation.code, indices, gates)

    def gathered_mlp(
        self,
        x: Array,
        records: NeuronRecords,
        indices: Int32[np.ndarray, " A"],
        activation: Activation,
        out: Array,
        gates: Array | None = None,
    ) -> None:
        """Write the MLP's output over the listed neurons only."""
        self._native.gathered_mlp(x, records.handle, indices, activation.code, out, gates)

    def dense_mlp(self, x: Array, records: NeuronRecords, activation: Activation, out: Array) -> None:
        """Write the MLP's output over all neurons."""
        self._native.dense_mlp(x, records.handle, activation.code, out)

    def read_bandwidth(self, n_bytes: int, seconds: float) -> float:
        """Return the best rate in bytes per second of reading `n_bytes` of memory."""
        return self._native.read_bandwidth(n_bytes, seconds)
