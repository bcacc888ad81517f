"""ReferenceCpu: the kernels by their definitions, in plain torch.   (floor 1 · kernels)

The implementation for machines without a compiler, and the oracle of the tests. Threads are torch's own.
"""

import time
from typing import final

import numpy as np
import torch
from jaxtyping import Float32, Int32

from winnow.kernels.active_set.reference import active_set_reference
from winnow.kernels.decode_attention.reference import attend_reference
from winnow.kernels.gate_set.reference import gate_set_reference
from winnow.kernels.gathered_mlp.reference import dense_mlp_reference, gathered_mlp_reference
from winnow.kernels.linear.reference import linear_reference
from winnow.kernels.norm.reference import layer_norm_reference, rms_norm_reference
from winnow.kernels.operands import Activation, AnyMatrix, KvBlock, NeuronRecords
from winnow.kernels.rotary.reference import rotate_reference

Array = Float32[np.ndarray, "..."]


@final
class ReferenceCpu:
    """Every kernel by its reference; the laws are those of `Cpu`."""

    isa = "torch"

    def __init__(self, threads: int) -> None:
        """Remember `threads`; the arithmetic runs on torch's threads."""
        self.threads = threads

    def linear(self, x: Array, matrix: AnyMatrix, bias: Array | None, out: Array) -> None:
        """Write ``weight @ x + bias``."""
        shift = None if bias is None else torch.from_numpy(bias)
        _write(out, linear_reference(torch.from_numpy(x), matrix.weight, shift))

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float, out: Array) -> None:
        """Write the rows normalised to mean 0 and variance 1."""
        tensors = torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(bias)
        _write(out, layer_norm_reference(*tensors, eps))

    def rms_norm(self, x: Array, weight: Array, eps: float, out: Array) -> None:
        """Write the rows normalised to mean square 1."""
        _write(out, rms_norm_reference(torch.from_numpy(x), torch.from_numpy(weight), eps))

    def rotate(self, x: Array, cos: Array, sin: Array) -> None:
        """Turn the pairs (j, j + E/2) of each head, in place."""
        _write(x, rotate_reference(torch.from_numpy(x), torch.from_numpy(cos), torch.from_numpy(sin)))

    def append_kv(self, kv: KvBlock, position: int, k: Array, v: Array) -> None:
        """Store the key and the value of one position."""
        kv.keys[:, position] = torch.from_numpy(k)
        kv.values[:, position] = torch.from_numpy(v)

    def attend(self, q: Array, kv: KvBlock, start: int, length: int, scale: float, out: Array) -> None:
        """Write the attention of `q` over the positions start..length-1."""
        keys, values = kv.keys[:, start:length], kv.values[:, start:length]
        _write(out, attend_reference(torch.from_numpy(q), keys, values, scale))

    def active_set(
        self, x: Array, p1: AnyMatrix, p2: AnyMatrix, bias: Array, cap: int, indices: Int32[np.ndarray, " F"]
    ) -> int:
        """Write the neurons whose predicted pre-activation is above 0, ascending; return how many."""
        chosen = active_set_reference(torch.from_numpy(x), p1.weight, p2.weight, torch.from_numpy(bias), cap)
        indices[: len(chosen)] = chosen.numpy()
        return len(chosen)

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
        if not records.is_gated:
            raise ValueError("the records are ungated, expected gated ones.")
        shift = torch.from_numpy(thresholds)
        chosen, values = gate_set_reference(torch.from_numpy(x), records, shift, activation)
        indices[: len(chosen)] = chosen.numpy()
        _write(gates, values)
        return len(chosen)

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
        if gates is not None and not records.is_gated:
            raise ValueError("the records are ungated, expected gated ones.")
        known = None if gates is None else torch.from_numpy(gates)
        tensors = torch.from_numpy(x), records, torch.from_numpy(indices)
        _write(out, gathered_mlp_reference(*tensors, activation, known))

    def dense_mlp(self, x: Array, records: NeuronRecords, activation: Activation, out: Array) -> None:
        """Write the MLP's output over all neurons."""
        _write(out, dense_mlp_reference(torch.from_numpy(x), records, activation))

    def read_bandwidth(self, n_bytes: int, seconds: float) -> float:
        """Return the best rate, in bytes per second, at which torch sums `n_bytes` of memory."""
        memory = torch.ones(max(n_bytes // 4, 1))
        deadline, best = time.perf_counter() + seconds, 0.0
        while best == 0.0 or time.perf_counter() < deadline:
            started = time.perf_counter()
            memory.sum()
            best = max(best, memory.nbytes / (time.perf_counter() - started))
        return best


def _write(out: np.ndarray, result: torch.Tensor) -> None:
    torch.from_numpy(out).copy_(result)
