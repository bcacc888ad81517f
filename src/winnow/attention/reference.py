"""The definition of attention with any weight, and of the weights.   (floor 4 · attention)"""

import math

import torch
from torch.nn.functional import elu, normalize


def attend_reference(weight, q, k, v, *, causal=True, scale=1.0, mask=None):
    """Return sum_s w(q_t, k_s) v_s / sum_s w(q_t, k_s); the plain mean where all weights are zero."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    n_queries, n_keys = q.shape[2], k.shape[2]
    seen = q.new_ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries if causal else n_keys)
    seen = seen if mask is None else seen & mask[:, None, None, :]
    weights = weight(scale * q, k) * seen
    weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, 1.0 * seen)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300) @ v


def exponential(q, k):
    """The weight of softmax attention."""
    return torch.exp(q @ k.mT)


def power(degree, bias):
    """The weight (bias + x) ** degree."""
    return lambda q, k: (bias + q @ k.mT) ** degree


def truncated(degree):
    """The first terms of exp(x)."""
    return lambda q, k: sum((q @ k.mT) ** j / math.factorial(j) for j in range(degree + 1))


FEATURES = {
    "elu": lambda q, k: (elu(q) + 1) @ (elu(k) + 1).mT,
    "degree-1": lambda q, k: 1 + normalize(q, dim=-1) @ normalize(k, dim=-1).mT,
}
