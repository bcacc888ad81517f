"""Missing keys and values: those of a head computed when the head is needed.   (floor 1 · kernels)

    missing_kv   k_t, v_t = W_h x_t   for the listed heads h and every position t that they lack
    due_heads    the heads of a step: those selected, and those that have waited longest

Each row of W_h is read once, whatever its head lacks; a position's key and value have the bits that they
would have had at once. Reads 2 * E * D weights per listed head, and the inputs x_t that some of them need.

A head may lack W positions, as many as inputs are kept, and n = ceil(K / W) heads may be computed in a step
beside those selected. Of the heads left to wait, the longest first, the r-th (from 0) lacks m_r positions:
it is in time if r < n * (W - m_r), the heads that can be computed before it lacks more than W. Due are the
fewest that leave all others in time. They are never more than n, and take turns where none is ever selected.

    reference.py   the definitions
    due.hpp due.cpp   whose turn it is
    cpu.cpp        a head's keys or values per thread, two inputs at once, each laid out when it comes
"""

import numpy as np
import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels.checks import block_list, float32_array
from winnow.kernels.cpu import Cpu
from winnow.kernels.lazy_kv import LazyKv
from winnow.kernels.missing_kv.reference import due_heads_reference, missing_kv_reference

__all__ = ["due_heads", "due_heads_reference", "missing_kv", "missing_kv_reference"]


def missing_kv(
    x: Float32[Tensor, " D"], lazy: LazyKv, position: int, heads: Int32[Tensor, " A"], *, cpu: Cpu
) -> None:
    """Keep `x` as the input at `position`, and store what the listed heads lack up to it.

    Raises UsageError for a position outside the cache and for heads outside it.
    """
    at = _position(lazy, position)
    listed = block_list(heads, lazy.matrix.shape[0] // 2, lazy.kv.n_kv_heads)
    cpu.missing_kv(float32_array("x", x, lazy.inputs.shape[1]), lazy, at, listed)


def due_heads(
    lazy: LazyKv, position: int, selected: Int32[Tensor, " A"], *, cpu: Cpu
) -> tuple[Int32[Tensor, " due"], int]:
    """Return the heads due at `position`, the selected ones first, and the most positions that one lacks."""
    at = _position(lazy, position)
    listed = block_list(selected, lazy.matrix.shape[0] // 2, lazy.kv.n_kv_heads)
    due, count, most = np.zeros(lazy.kv.n_kv_heads, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int64)
    cpu.due_heads(lazy, at, listed, (due, count), most)
    return torch.from_numpy(due[: int(count[0])]), int(most[0])


def _position(lazy: LazyKv, position: int) -> np.ndarray:
    if not 0 <= position < lazy.kv.capacity:
        raise UsageError(f"position is {position}, the cache holds 0..{lazy.kv.capacity - 1}.")
    return np.array([position], np.int64)
