"""Missing keys and values, and whose turn it is, by their definitions.   (floor 1 · kernels)"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.kernels.norm.reference import rms_norm_reference
from winnow.kernels.rotary.reference import rotate_reference


def missing_kv_reference(
    x: Float[Tensor, "T D"],
    weight: Float[Tensor, "M D"],
    bias: Float[Tensor, " M"] | None,
    norm: tuple[Float[Tensor, " E"], float] | None,
    angles: tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]] | None,
) -> tuple[Float[Tensor, "T E"], Float[Tensor, "T E"]]:
    """Return one head's keys and values at T positions; `weight` has its rows of keys, then of values."""
    y = x @ weight.to(x.dtype).T
    k, v = (y if bias is None else y + bias.to(x.dtype)).chunk(2, dim=-1)
    if norm is not None:
        k = rms_norm_reference(k, *norm)
    if angles is not None:
        k = torch.cat([rotate_reference(row[None], *at) for row, *at in zip(k, *angles, strict=True)])
    return k, v


def due_heads_reference(
    missing: Int[Tensor, " K"], selected: Int[Tensor, " A"], window: int
) -> Int[Tensor, " due"]:
    """Return the selected heads, then those that have waited longest: as few as the law allows."""
    chosen, per_step = selected.tolist(), -(-len(missing) // window)
    waiting = [k for k in range(len(missing)) if k not in chosen]
    waiting.sort(key=lambda k: -int(missing[k]))  # of equals the lower number
    needed = [r + 1 - per_step * (window - int(missing[k])) for r, k in enumerate(waiting)]
    return torch.tensor([*chosen, *waiting[: max(0, *needed)]] if needed else chosen, dtype=selected.dtype)
