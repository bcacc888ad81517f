"""Cpu: what an implementation of the kernels offers.   (floor 1 · kernels)

The methods are the hot calls of a decode step. They take operands and C-contiguous float32 numpy arrays (a
torch tensor's `.numpy()` is a view, made once) and write into arrays of the caller. Lengths and index ranges
are checked (ValueError; TypeError for another dtype or layout), so that no call reads or writes outside an
array. The functions of the kernel folders take tensors and explain what is wrong.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

from winnow.kernels.operands import Activation, AnyMatrix, KvBlock, NeuronRecords


@runtime_checkable
class Cpu(Protocol):
    """The kernels on the CPU; every method gives the same bits for any number of threads."""

    @property
    def threads(self) -> int:
        """The number of threads, the caller's among them."""
        ...

    @property
    def isa(self) -> str:
        """The instruction set in use, one of `isa_levels()`, or "torch" for the definitions."""
        ...

    def linear(
        self,
        x: Float32[np.ndarray, " D"],
        matrix: AnyMatrix,
        bias: Float32[np.ndarray, " M"] | None,
        out: Float32[np.ndarray, " M"],
    ) -> None:
        """Write ``weight @ x + bias``; reads ``M * D * itemsize`` bytes of weight."""
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
        self, kv: KvBlock, position: int, k: Float32[np.ndarray, "K E"], v: Float32[np.ndarray, "K E"]
    ) -> None:
        """Store the key and the value of one position, rounded to the dtype of the cache."""
        ...

    def attend(
        self,
        q: Float32[np.ndarray, "H E"],
        kv: KvBlock,
        start: int,
        length: int,
        scale: float,
        out: Float32[np.ndarray, "H E"],
    ) -> None:
        """Write the attention of `q` over the positions start..length-1."""
        ...

    def active_set(
        self,
        x: Float32[np.ndarray, " D"],
        p1: AnyMatrix,
        p2: AnyMatrix,
        bias: Float32[np.ndarray, " F"],
        cap: int,
        indices: Int32[np.ndarray, " F"],
    ) -> int:
        """Write the neurons whose predicted pre-activation is above 0, ascending; return how many."""
        ...

    def gate_set(
        self,
        x: Float32[np.ndarray, " D"],
        records: NeuronRecords,
        thresholds: Float32[np.ndarray, " F"],
        activation: Activation,
        indices: Int32[np.ndarray, " F"],
        gates: Float32[np.ndarray, " F"],
    ) -> int:
        """Write all activated gates and the neurons above their thresholds, ascending; return how many.

        Gated records only; reads their gate rows and biases.
        """
        ...

    def gathered_mlp(
        self,
        x: Float32[np.ndarray, " D"],
        records: NeuronRecords,
        indices: Int32[np.ndarray, " A"],
        activation: Activation,
        out: Float32[np.ndarray, " D"],
        gates: Float32[np.ndarray, " F"] | None = None,
    ) -> None:
        """Write the MLP's output over the listed neurons only.

        With `gates`, the activated gates of all neurons by `gate_set`, gate rows are not read; gated records
        only, the same bits.
        """
        ...

    def dense_mlp(
        self,
        x: Float32[np.ndarray, " D"],
        records: NeuronRecords,
        activation: Activation,
        out: Float32[np.ndarray, " D"],
    ) -> None:
        """Write the MLP's output over all neurons, reading every byte, in `gathered_mlp`'s order."""
        ...

    def read_bandwidth(self, n_bytes: int, seconds: float) -> float:
        """Return the best rate in bytes per second of reading `n_bytes` of fresh memory with all threads."""
        ...
