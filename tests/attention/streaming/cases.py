"""Inputs that streaming attention is tried on, and exact attention to compare with."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

KINDS = ("random", "clustered", "heavy")


def drawn(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng)


def case(
    kind: str, rng: torch.Generator, n: int, n_queries: int, width: int = 32
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of two heads: noise, 24 clusters, or noise with 0.5 % heavy keys."""
    q = drawn(rng, 1, 2, n_queries, width)
    if kind == "clustered":
        at = torch.randint(24, (n,), generator=rng)
        centres = [drawn(rng, 1, 2, 24, width)[:, :, at] for _ in range(2)]
        return q, *(centre + 0.2 * drawn(rng, 1, 2, n, width) for centre in centres)
    k, v = drawn(rng, 1, 2, n, width), drawn(rng, 1, 2, n, width)
    if kind == "heavy":
        at = torch.randperm(n, generator=rng)[: n // 200]
        aim = q[:, :, torch.randint(n_queries, (len(at),), generator=rng)]
        k, v = 0.5 * k, 0.5 * v
        k[:, :, at] = 12 * aim / aim.norm(dim=-1, keepdim=True)
        v[:, :, at] = 3 * drawn(rng, 1, 2, len(at), width)
    return q, k, v


def exact(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
    """Exact attention in float64."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    return scaled_dot_product_attention(q.double(), k, v, is_causal=causal)
