"""Gate: what enters a state is checked here, once.   (floor 4 · attention)"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from winnow.base.errors import UsageError

N_LIMIT = 2**31 - 1  # tokens of one stream


def check_tokens(k: Tensor, v: Tensor, sizes: tuple[int, int, int, int]) -> None:
    """Raise UsageError unless `k` and `v` are new tokens of a state of `sizes` (B, K, E, E_v)."""
    batch, heads, width, value_width = sizes
    if k.ndim != 4 or v.ndim != 4 or k.shape[:3] != v.shape[:3]:
        raise UsageError(
            f"k is {list(k.shape)}, v is {list(v.shape)}; expected [B, K, T, E] and [B, K, T, E_v] with "
            "the same B, K and T."
        )
    if (k.shape[0], k.shape[1], k.shape[3], v.shape[3]) != sizes:
        raise UsageError(
            f"k is {list(k.shape)}, v is {list(v.shape)}; this state takes [{batch}, {heads}, T, {width}] "
            f"and [{batch}, {heads}, T, {value_width}]. Start another state for other sizes."
        )
    if k.shape[2] == 0:
        raise UsageError("The chunk holds no tokens; expected at least one. Leave the call out.")
    if not (k.is_floating_point() and v.is_floating_point()):
        raise UsageError(f"k is {k.dtype}, v is {v.dtype}; expected floating-point tensors.")
    if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
        raise UsageError("A streaming state has no gradients; call it under torch.no_grad().")


def check_finite(k: Tensor, v: Tensor) -> None:
    """Raise UsageError if a real token holds NaN or infinity: a state could never forget it."""
    for name, x in (("k", k), ("v", v)):
        if not bool(x.isfinite().all()):
            n_wrong = int((~x.isfinite()).any(-1).sum())
            raise UsageError(
                f"{name} holds NaN or infinity in {n_wrong} tokens; expected finite numbers. Mask them, or "
                "look for an overflow before attention."
            )


def check_count(seen: int, n_new: int) -> None:
    """Raise UsageError beyond int32: positions are counted in it."""
    if seen + n_new > N_LIMIT:
        raise UsageError(
            f"The stream would hold {seen + n_new} tokens; a state counts up to {N_LIMIT}. Start a new state."
        )


def checked_mask(mask: Tensor | None, batch: int, n_new: int, device: torch.device) -> Bool[Tensor, "B T"]:
    """Return which tokens are real; raises UsageError unless `mask` is bool [B, T]."""
    if mask is None:
        return torch.ones(batch, n_new, dtype=torch.bool, device=device)
    if mask.dtype != torch.bool or tuple(mask.shape) != (batch, n_new):
        raise UsageError(
            f"mask is {mask.dtype} {list(mask.shape)}; expected torch.bool [{batch}, {n_new}], True for real "
            "tokens."
        )
    return mask.to(device)


def check_queries(q: Tensor, n_new: int | None, sizes: tuple[int, int, int, int]) -> None:
    """Raise UsageError unless `q` is [B, H, T, E] of the state, H a multiple of K, T as wanted."""
    batch, heads, width, _ = sizes
    if q.ndim != 4 or q.shape[0] != batch or q.shape[3] != width:
        raise UsageError(f"q is {list(q.shape)}; this state takes [{batch}, H, T, {width}].")
    if q.shape[1] == 0 or q.shape[1] % heads:
        raise UsageError(
            f"q has {q.shape[1]} heads, the state {heads} key-value heads; expected a multiple of {heads}."
        )
    if n_new is not None and q.shape[2] != n_new:
        raise UsageError(
            f"q holds {q.shape[2]} tokens, k holds {n_new}; a causal step takes one query per token."
        )
    if q.shape[2] == 0:
        raise UsageError("q holds no tokens; expected at least one. Leave the call out.")
    if not q.is_floating_point():
        raise UsageError(f"q is {q.dtype}; expected a floating-point tensor.")


def chosen_scale(scale: float | None, width: int) -> float:
    """Return `scale`, or 1/sqrt(width) for None; raises UsageError unless it is above 0 and finite."""
    if scale is None:
        return width**-0.5
    if not 0 < scale < float("inf"):
        raise UsageError(f"scale is {scale}; expected a positive number, or None for 1/sqrt(E).")
    return scale


def rows_of(x: Float[Tensor, "B H T E"], n_rows: int) -> Float[Tensor, "N queries E"]:
    """Return `x` in float32 with one row per batch entry and key-value head, the group's heads joined."""
    return x.detach().float().reshape(n_rows, -1, x.shape[-1])
