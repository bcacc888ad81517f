"""Decode attention: one query per head against the cached keys and values.   (floor 1 · kernels)

    out_h = sum over t of softmax_t(scale * q_h . k_t) v_t

Reads K * T * `position_bytes` of cache, each byte once: the H // K query heads that share a kv head go
together. The query and the probabilities stay in float32 whatever the dtype of the cache.

    reference.py   the definition
    store.hpp      rounded to the type of the cache, for other kernels too
    block.hpp      a block of positions, for up to four of the query heads that share it
    cpu.cpp        blocks of at most 256 positions, each with its own maximum, combined in a fixed order
"""

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels.checks import float32_array
from winnow.kernels.cpu import Cpu
from winnow.kernels.decode_attention.reference import attend_reference
from winnow.kernels.lazy_kv import KvBlock

__all__ = ["append_kv", "attend", "attend_reference"]


def append_kv(
    kv: KvBlock, position: int, k: Float32[Tensor, "K E"], v: Float32[Tensor, "K E"], *, cpu: Cpu
) -> None:
    """Store one position's keys and values, rounded to the dtype of the cache."""
    if not 0 <= position < kv.capacity:
        raise UsageError(f"position is {position}, the cache holds 0..{kv.capacity - 1}.")
    shape = kv.n_kv_heads, kv.head_width
    at = np.array([position], np.int64)
    cpu.append_kv(kv, at, float32_array("k", k, *shape), float32_array("v", v, *shape))


def attend(
    q: Float32[Tensor, "H E"], kv: KvBlock, start: int, length: int, scale: float, *, cpu: Cpu
) -> Float32[Tensor, "H E"]:
    """Return the attention of each head over the positions start..length-1.

    Head h reads kv head ``h // (H // K)``. Exact up to the order of summation, which does not depend on the
    number of threads. Raises UsageError for an empty range or one beyond the capacity.
    """
    n_heads = q.shape[0]
    if n_heads == 0 or n_heads % kv.n_kv_heads:
        raise UsageError(f"q has {n_heads} heads, expected a multiple of the cache's {kv.n_kv_heads}.")
    if not 0 <= start < length <= kv.capacity:
        raise UsageError(
            f"received start {start} and length {length}, expected 0 <= start < length <= {kv.capacity}, "
            "the capacity of the cache."
        )
    out = torch.empty(q.shape)
    array, last = float32_array("q", q, n_heads, kv.head_width), np.array([length - 1], np.int64)
    cpu.attend(array, kv, last, length - start, scale, out.numpy())
    return out
