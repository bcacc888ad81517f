"""Implementation: what transformers calls in the place of attention.   (floor 4 · attention)"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from winnow.attention.hf.layer import NAME, NOTE, StreamingLayer
from winnow.base.errors import UsageError


def register() -> None:
    """Make "winnow_streaming" known to transformers, as an attention and as its masks; again does no harm.

    With a `StreamingCache` the attention streams; without one, or with another cache, it is exact causal
    attention, gradients included.
    """
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, flash_attention_mask)


def _attention(  # noqa: PLR0913, PLR0917 (the signature is transformers')
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attend as transformers asks: [B, H, T, E] in, [B, T, H, E] out, no weights."""
    if attention_mask is not None and attention_mask.ndim != 2:
        raise UsageError(
            f"attention_mask is {list(attention_mask.shape)}; {NAME} takes a padding mask [B, tokens], not "
            "one per query. Use sdpa for those."
        )
    n = query.shape[2]
    layer = getattr(key, NOTE, None)
    seen = key.shape[2] if layer is None else layer.get_seq_length() + n
    if sliding_window is not None and seen > sliding_window:
        raise UsageError(
            f"{NAME} got {seen} tokens in a layer with a sliding window of {sliding_window}; set "
            "config.sliding_window=None, or leave the layer to sdpa."
        )
    if isinstance(layer, StreamingLayer):
        if dropout:
            raise UsageError(f"{NAME} streams without dropout, got {dropout}; call model.eval().")
        mask = None if attention_mask is None else attention_mask[:, -n:].bool()
        out = layer.attend(query, key, value, mask, scaling)
    else:
        out = _exact(query, key, value, attention_mask, dropout, scaling)
    return out.transpose(1, 2).contiguous(), None


def _exact(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float | None
) -> Tensor:
    """Exact causal attention of the last tokens over all; a query without a real token gets zeros."""
    group, n, n_all = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if mask is None and n == n_all:
        return scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scale)
    latest = torch.arange(n_all - n, n_all, device=q.device)
    sees = torch.arange(n_all, device=q.device) <= latest[:, None]
    if mask is None:
        return scaled_dot_product_attention(q, k, v, sees, dropout_p=dropout, scale=scale)
    sees = sees & mask[:, None, None, -n_all:].bool()  # [B, 1, T, S]
    is_blind = ~sees.any(-1, keepdim=True)
    out = scaled_dot_product_attention(q, k, v, sees | is_blind, dropout_p=dropout, scale=scale)
    return out.masked_fill(is_blind, 0)
