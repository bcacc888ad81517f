"""Fidelity: sparse against dense, token by token, on the same text.   (floor 5 · engine)

Every token of every window is computed sparsely, the prompt too. Generation reads its prompt densely, so
what is measured here is the harder case.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.engine.cache import KvCache
from winnow.engine.model import Heads, Mlp, all_heads, dense_mlp, forward
from winnow.engine.sparsity.plan import Plan
from winnow.engine.sparsity.sparse_heads import SparseHeads
from winnow.engine.sparsity.sparse_mlp import LayerCounts, SparseMlp
from winnow.engine.weights import Weights

WINDOW_TOKENS = 512


@dataclass(frozen=True)
class Fidelity:
    """What sparsity costs: divergences in nats per token, shares in 0..1, standard errors in ``_se``.

    The rows of llama.cpp's ``--kl-divergence`` are among them. ``delta_p`` is the change of the probability
    of the token that really comes next. ``ppl_correlation`` is that of the two models' nats per token.
    A standard error takes tokens as independent; of a single token it is NaN. Bytes are those that the MLPs
    read per token when the weights are held in bfloat16, predictors included, the padding of records aside.
    """

    tokens: int
    ppl_dense: float
    ppl_dense_se: float
    ppl_sparse: float
    ppl_sparse_se: float
    ppl_ratio: float  # sparse over dense
    ppl_ratio_se: float
    ppl_correlation: float
    kld_mean: float
    kld_mean_se: float
    kld_median: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    same_top: float
    same_top_se: float
    delta_p_mean: float
    delta_p_mean_se: float
    delta_p_rms: float
    mlp_density: float
    head_density: float
    predictor_recall: float
    mlp_bytes: float
    mlp_bytes_dense: float
    layers: tuple[LayerCounts, ...]
    kld_quantised: float | None = None  # of the dense model from the one in fp32, where that was given


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


def window_logits(
    weights: Weights, ids: Int64[Tensor, " T"], mlp: Mlp, heads: Heads = all_heads
) -> Float[Tensor, "T V"]:
    """Return the logits of one window from an empty cache."""
    cache = KvCache(weights.config, capacity=len(ids), dtype=weights.cache_dtype)
    return forward(weights, ids, cache, mlp=mlp, heads=heads)


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
    return _compared(weights, [plan], texts, tick)[0]


def sweep(
    weights: Weights,
    plan: Plan,
    shifts: Sequence[float | int],
    texts: Iterable[Int64[Tensor, " _"]],
    tick: Callable[[int], None],
    exact: Weights | None = None,
) -> tuple[Fidelity, ...]:
    """Return the fidelity of `plan` with every threshold moved by each of `shifts`, on the same windows.

    What a plan trades: bytes against divergence. `exact` are the same weights in fp32: with them it is told
    apart what the weights' precision costs, from what the plan does. Costs one forward pass more than there
    are shifts, two with `exact`.
    """
    return _compared(weights, [shifted(plan, shift) for shift in shifts], texts, tick, exact)


def shifted(plan: Plan, shift: float | int) -> Plan:
    """Return `plan` with its thresholds lowered by `shift`: more neurons above 0, fewer below.

    The unit is each kind's own: the standard deviation of each neuron's score, a factor of e for gates. What
    was counted of the plan no longer holds and is left out.
    """
    layers = tuple(each and each.lowered(shift) for each in plan.layers)
    return dataclasses.replace(plan, layers=layers, quality=())


def _compared(
    weights: Weights,
    plans: Sequence[Plan],
    texts: Iterable[Int64[Tensor, " _"]],
    tick: Callable[[int], None],
    exact: Weights | None = None,
) -> tuple[Fidelity, ...]:
    tallies, quantised = [_Tally(plan) for plan in plans], []
    with torch.inference_mode():
        for done, ids in enumerate(texts, start=1):
            dense = window_logits(weights, ids, dense_mlp)
            if exact is not None:
                quantised.append(divergence(window_logits(exact, ids, dense_mlp), dense))
            for tally in tallies:
                tally.add(dense, window_logits(weights, ids, tally.mlp, tally.heads), ids)
            tick(done)
    nats = torch.cat(quantised).double().mean().item() if quantised else None
    return tuple(dataclasses.replace(tally.fidelity(weights), kld_quantised=nats) for tally in tallies)


class _Tally:
    """What one plan predicts beside the dense model, token by token."""

    def __init__(self, plan: Plan) -> None:
        self.mlp = SparseMlp(plan.layers)
        self.heads = SparseHeads(plan.heads or (None,) * len(plan.layers))
        self.kld: list[Tensor] = []
        self.same: list[Tensor] = []
        self.nats: list[Tensor] = []  # [2, N] of the token that comes next: dense, sparse

    def add(
        self, dense: Float[Tensor, "T V"], sparse: Float[Tensor, "T V"], ids: Int64[Tensor, " T"]
    ) -> None:
        self.kld.append(divergence(dense, sparse))
        self.same.append(dense.argmax(-1) == sparse.argmax(-1))
        self.nats.append(torch.stack([_surprise(dense, ids), _surprise(sparse, ids)]))

    def fidelity(self, weights: Weights) -> Fidelity:
        kld, same = torch.cat(self.kld).double(), torch.cat(self.same).double()
        dense, sparse = torch.cat(self.nats, dim=1).double()
        ppl_dense, ppl_sparse = math.exp(dense.mean()), math.exp(sparse.mean())
        ratio = math.exp((sparse - dense).mean())
        delta_p = (-sparse).exp() - (-dense).exp()
        overall = self.mlp.overall()
        mlp_bytes, mlp_bytes_dense = self._bytes(weights)
        return Fidelity(
            tokens=len(kld),
            ppl_dense=ppl_dense,
            ppl_dense_se=ppl_dense * _standard_error(dense),
            ppl_sparse=ppl_sparse,
            ppl_sparse_se=ppl_sparse * _standard_error(sparse),
            ppl_ratio=ratio,
            ppl_ratio_se=ratio * _standard_error(sparse - dense),
            ppl_correlation=_correlation(dense, sparse),
            kld_mean=kld.mean().item(),
            kld_mean_se=_standard_error(kld),
            kld_median=kld.median().item(),
            kld_p99=torch.quantile(kld, 0.99).item(),
            kld_p999=torch.quantile(kld, 0.999).item(),
            kld_max=kld.max().item(),
            same_top=same.mean().item(),
            same_top_se=_standard_error(same),
            delta_p_mean=delta_p.mean().item(),
            delta_p_mean_se=_standard_error(delta_p),
            delta_p_rms=delta_p.square().mean().sqrt().item(),
            mlp_density=overall.density,
            head_density=self.heads.density,
            predictor_recall=overall.recall,
            mlp_bytes=mlp_bytes,
            mlp_bytes_dense=mlp_bytes_dense,
            layers=self.mlp.shares(),
        )

    def _bytes(self, weights: Weights) -> tuple[float, float]:
        """Return what the MLPs read per token, sparse and dense, with weights in bfloat16."""
        sparse = dense = 0.0
        for predictor, layer, counts in zip(self.mlp.layers, weights.layers, self.mlp.shares(), strict=True):
            records = layer.mlp
            whole = records.n_neurons * records.record_bytes
            halved = torch.bfloat16.itemsize / records.dtype.itemsize
            dense += whole * halved
            if predictor is None:
                sparse += whole * halved
            else:
                read = predictor.bytes_read(records, counts.density * records.n_neurons)
                sparse += predictor.n_bytes + (read - predictor.n_bytes) * halved
        return sparse, dense


def _standard_error(values: Float64[Tensor, " N"]) -> float:
    """Return the standard error of the mean; NaN for one value."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _correlation(a: Float64[Tensor, " N"], b: Float64[Tensor, " N"]) -> float:
    """Return Pearson's correlation; NaN where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = (a.norm() * b.norm()).item()
    return (a @ b).item() / scale if scale > 0 else math.nan


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
