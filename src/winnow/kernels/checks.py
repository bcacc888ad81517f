"""Checks: what the public functions refuse, in one place.   (floor 1 · kernels)"""

import numpy as np
import torch
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels.records import NeuronRecords


def float32_array(name: str, tensor: Tensor, *shape: int) -> np.ndarray:
    """Return `tensor` as a contiguous float32 array of the given shape, or say what it is instead."""
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise UsageError(
            f"{name} is {tensor.dtype} on {tensor.device}, expected float32 on the CPU: convert it."
        )
    if tuple(tensor.shape) != shape:
        raise UsageError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}.")
    return tensor.detach().contiguous().numpy()


def index_array(indices: Tensor, n_neurons: int) -> np.ndarray:
    """Return `indices` as a contiguous int32 array if all of them lie in 0..n_neurons-1."""
    if indices.dtype != torch.int32 or indices.ndim != 1:
        raise UsageError(f"indices is {indices.dtype} {tuple(indices.shape)}, expected int32 [A].")
    lowest, highest = (int(indices.min()), int(indices.max())) if len(indices) else (0, 0)
    if lowest < 0 or highest >= n_neurons:
        raise UsageError(
            f"indices spans {lowest}..{highest}, the records hold neurons 0..{n_neurons - 1}: "
            "was the predictor made for another layer?"
        )
    return indices.contiguous().numpy()


def block_list(blocks: Tensor, n_rows: int, n_blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Return room for the numbers of blocks that cut `n_rows` evenly, the given ones in it; how many."""
    if n_blocks < 1 or n_rows % n_blocks:
        raise UsageError(f"{n_blocks} blocks were asked of {n_rows} rows, expected a divisor of them.")
    listed = blocks.tolist()
    if len(listed) > n_blocks or not all(0 <= block < n_blocks for block in listed):
        raise UsageError(f"blocks are {listed}, expected at most {n_blocks} of 0..{n_blocks - 1}.")
    room = np.zeros(n_blocks, np.int32)
    room[: len(listed)] = listed
    return room, np.array([len(listed)], np.int64)


def gate_array(gates: Tensor, records: NeuronRecords) -> np.ndarray:
    """Return the activated gates of all neurons as a float32 array; gated records only."""
    check_gated("gates", records)
    return float32_array("gates", gates, records.n_neurons)


def check_gated(name: str, records: NeuronRecords) -> None:
    """Refuse ungated records, naming the argument that asks for gates."""
    if not records.is_gated:
        raise UsageError(
            f"{name} was given for ungated records, expected gated ones (NeuronRecords.pack with w_up): "
            "an ungated MLP has no gates."
        )
