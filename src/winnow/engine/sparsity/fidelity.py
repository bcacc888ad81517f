"""Fidelity: sparse against dense, token by token, on the same text.   (floor 5 · engine)

Every token of every window is computed sparsely, the prompt too. Generation reads its prompt densely, so
what is measured here is the harder case.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.engine.cache import KvCache
from winnow.engine.model import Mlp, dense_mlp, forward
from winnow.engine.sparsity.plan import Plan
from winnow.engine.sparsity.sparse_mlp import LayerCounts, SparseMlp
from winnow.engine.weights import Weights

WINDOW_TOKENS = 512


@dataclass(frozen=True)
class Fidelity:
    """What sparsity costs: divergences in nats per token, shares in 0..1."""

    tokens: int
    ppl_dense: float
    ppl_sparse: float
    kld_mean: float
    kld_median: float
    kld_p999: float
    same_top: float
    mlp_density: float
    head_density: float
    predictor_recall: float
    layers: tuple[LayerCounts, ...]


def windows(ids: Sequence[int], begin: Sequence[int], size: int = WINDOW_TOKENS) -> list[Int64[Tensor, " _"]]:
    """Cut `ids` into windows of at most `size` tokens, each begun by `begin` (the tokens that open a text).

    Raises UsageError when no window holds at least two tokens of text.
    """
    step = size - len(begin)
    cut = [torch.tensor([*begin, *ids[i : i + step]]) for i in range(0, len(ids), step)]
    kept = [w for w in cut if len(w) - len(begin) >= 2]
    if not kept:
        raise UsageError(f"The text has {len(ids)} tokens; expected at least 2. Give a longer --text.")
    return kept


def window_logits(weights: Weights, ids: Int64[Tensor, " T"], mlp: Mlp) -> Float[Tensor, "T V"]:
    """Return the logits of one window from an empty cache."""
    cache = KvCache(weights.config, capacity=len(ids), dtype=weights.embed.dtype)
    return forward(weights, ids, cache, mlp=mlp)


def divergence(dense: Float[Tensor, "T V"], sparse: Float[Tensor, "T V"]) -> Float[Tensor, " T"]:
    """Return KL(dense || sparse) of each row, in nats."""
    p, q = dense.log_softmax(-1), sparse.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0)


def _surprise(logits: Float[Tensor, "T V"], ids: Int64[Tensor, " T"]) -> Float[Tensor, " N"]:
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")


def compare(
    weights: Weights, plan: Plan, texts: Iterable[Int64[Tensor, " _"]], tick: Callable[[int], None]
) -> Fidelity:
    """Run every window densely and sparsely and return how far the predictions part.

    Costs two forward passes; holds the logits of one window at a time. `tick` is told the windows done.
    """
    sparse_mlp = SparseMlp(plan.layers)
    nats, same, dense_nats, sparse_nats = [], [], [], []
    with torch.inference_mode():
        for done, ids in enumerate(texts, start=1):
            dense = window_logits(weights, ids, dense_mlp)
            sparse = window_logits(weights, ids, sparse_mlp)
            nats.append(divergence(dense, sparse))
            same.append(dense.argmax(-1) == sparse.argmax(-1))
            dense_nats.append(_surprise(dense, ids))
            sparse_nats.append(_surprise(sparse, ids))
            tick(done)
    kld = torch.cat(nats).double()
    overall = sparse_mlp.overall()
    return Fidelity(
        tokens=len(kld),
        ppl_dense=math.exp(torch.cat(dense_nats).double().mean()),
        ppl_sparse=math.exp(torch.cat(sparse_nats).double().mean()),
        kld_mean=kld.mean().item(),
        kld_median=kld.median().item(),
        kld_p999=torch.quantile(kld, 0.999).item(),
        same_top=torch.cat(same).double().mean().item(),
        mlp_density=overall.density,
        head_density=1.0,
        predictor_recall=overall.recall,
        layers=sparse_mlp.shares(),
    )


@dataclass(frozen=True)
class Perplexity:
    """Dense quality on a text: tokens scored, perplexity per token, bits per byte of the text."""

    tokens: int
    ppl: float
    bits_per_byte: float


def perplexity(
    weights: Weights, texts: Iterable[Int64[Tensor, " _"]], n_bytes: int, tick: Callable[[int], None]
) -> Perplexity:
    """Score every token after the first of each window; `n_bytes` is the length of the whole text.

    Bits per byte spreads the mean over the scored tokens onto all bytes, so it compares tokenizers.
    """
    nats, n_tokens = [], 0
    with torch.inference_mode():
        for done, ids in enumerate(texts, start=1):
            nats.append(_surprise(window_logits(weights, ids, dense_mlp), ids))
            n_tokens += len(nats[-1])
            tick(done)
    total = torch.cat(nats).double().sum().item()
    return Perplexity(n_tokens, math.exp(total / n_tokens), total / math.log(2) / n_bytes)
