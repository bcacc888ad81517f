"""Decode attention, by its definition.   (floor 1 · kernels)"""

import torch
from jaxtyping import Float
from torch import Tensor


def attend_reference(
    q: Float[Tensor, "H E"], keys: Float[Tensor, "K T E"], values: Float[Tensor, "K T E"], scale: float
) -> Float[Tensor, "H E"]:
    """Return ``softmax(scale * q @ keys.T) @ values`` per head; head h reads kv head ``h // (H // K)``."""
    shared = q.shape[0] // keys.shape[0]
    keys = keys.to(q.dtype).repeat_interleave(shared, dim=0)
    values = values.to(q.dtype).repeat_interleave(shared, dim=0)
    scores = torch.einsum("he,hte->ht", q, keys) * scale
    return torch.einsum("ht,hte->he", torch.softmax(scores, dim=-1), values)
