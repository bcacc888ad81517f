"""Reference: what streaming attention equals, for a given split of the past.   (floor 4 · attention)"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Group = tuple[Tensor, Tensor]  # keys [M, E] and values [M, E_v] of one cluster


def streaming_reference(
    q: Float[Tensor, " E"], exact: Group, groups: Sequence[Group], scale: float
) -> Float[Tensor, " E_v"]:
    """Softmax attention in which each group of tokens stands as one: its second cumulant for their sum.

    log sum_i exp(x.k_i) ~ log n + x.mean + s2/2 with s2 the variance of x.k_i, x = scale * q; beyond
    s2 = 2 log n the sum is that of its largest terms, and s2/2 gives way to sqrt(2 s2 log n) - log n.
    A cluster's variance is that of its axes, times what the pooled covariance makes of the pooled axes.
    """
    x, (keys, values) = scale * q, exact
    logits, parts = [keys @ x], [values]
    middles = [(k.mean(0), v.mean(0)) for k, v in groups]
    apart = [(k - m, v - u) for (k, v), (m, u) in zip(groups, middles, strict=True)]
    n_rest = sum(len(k) for k, _ in groups)
    pooled = sum((d.T @ d for d, _ in apart), torch.zeros(len(q), len(q)).to(q)) / max(n_rest, 1)  # [E, E]
    cross = sum(d.T @ e for d, e in apart) / max(n_rest, 1)  # [E, E_v]
    for (d, _), (mean, middle) in zip(apart, middles, strict=True):
        share = (x**2) @ (d**2).mean(0) / ((x**2) @ pooled.diagonal()).clamp(min=1e-30)
        variance, log_n = share * (x @ pooled @ x), torch.tensor(float(len(d))).to(q).log()
        frozen = (2 * variance * log_n).sqrt()
        is_frozen = variance > 2 * log_n
        rise = torch.where(is_frozen, frozen - log_n, variance / 2)
        tilt = share * torch.where(is_frozen, frozen / variance.clamp(min=1e-30), 1.0)
        logits.append((log_n + x @ mean + rise).reshape(1))
        parts.append((middle + tilt * (x @ cross)).reshape(1, -1))
    return torch.cat(logits).softmax(0) @ torch.cat(parts)
