"""Certificate: how far a read may be from exact attention.   (floor 4 · attention)

Write Z for summed weights, o for the output given, and D = sum_i w_i (v_i - o) over all tokens. The error is
|D| / Z. The exact tokens' part of D is known; the rest is bounded twice.

Statistical: a uniform sample of the absorbed tokens gives an estimate T of D (what count, means, variances
and pooled covariance of the clusters predict, plus the sample's mean of what they miss) and T's variance V.
An error of T spread over d directions has a length near sqrt(V) and a part along D near sqrt(V / d), so

    |D| <= a + sqrt(a^2 + max(0, |T|^2 - V (1 - z sqrt(2 / d)))),    a = z sqrt(V / d),  z = 3.5

with d the values' effective dimension, at most 20 (derived, not proven: tails are taken as nearly normal). An
adversary who hides one heavy key in a long remainder is not covered. Where the values are noise the bound is
loose by about three times the square root of absorbed over sampled tokens: what the model misses averages out
over all of them, what the sample says over its own. z is the largest for which that stays below ten at 5000
tokens (benchmarks/certificates.py). Of queries three times as sharp it covers 98 in 100.

Deterministic: a cluster's keys lie in a ball with a known mean and variance, so its summed weight is at
least n exp(mean) (Jensen) and at most that of the worst two-point distribution (Bennett). It holds always.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.attention.streaming.clusters import Clusters
from winnow.attention.streaming.reading import TINY, Queries, Reading
from winnow.attention.streaming.reservoir import Reservoir

Z = 3.5  # standard deviations that the statistical bound allows for
FREEDOM = 20.0  # directions at most that an error is taken to be spread over: weights have heavy tails
TOP = 60.0  # weights relative to the model's total are cut at exp(60)
ROUNDING = 1e-5  # of the largest value: what float32 may add to any error
SLACK = 1 + 1e-3


@final
@dataclass(frozen=True)
class Statistical:
    """A bound that holds for most reads, from a uniform sample of the absorbed tokens."""

    error: Float[Tensor, "*B"]
    n_sampled: int
    covers = "inputs whose kind the sample saw, in at least 99 % of reads; not an adversary"


@final
@dataclass(frozen=True)
class Deterministic:
    """A bound that holds for every input, from the balls that the clusters' keys and values lie in."""

    error: Float[Tensor, "*B"]
    covers = "every input"


@final
@dataclass(frozen=True)
class Certificate:
    """What is known of the error of a read, per query of each head: shapes [B, H, T].

    `mass` is the estimated share of the absorbed tokens in the exact softmax, `lse_gap` the estimated log of
    the exact normaliser less the model's, in nats. Errors are Euclidean norms of a head's output, in the
    units of v, against exact attention over all tokens at the positions that the options give them.
    """

    mass: Float[Tensor, "*B"]
    lse_gap: Float[Tensor, "*B"]
    statistical: Statistical
    deterministic: Deterministic
    is_exact: bool

    @property
    def looseness(self) -> float:
        """The median ratio of the deterministic bound to the statistical one: what certainty costs."""
        return float((self.deterministic.error / self.statistical.error.clamp(min=TINY)).median())

    @property
    def flags(self) -> tuple[str, ...]:
        """What a reader should know before trusting the figures; empty when nothing stands out."""
        if self.is_exact:
            return ()
        said = {
            "the absorbed tokens carry most of the weight": bool((self.mass > 0.5).any()),
            "the model misses the normaliser by more than 0.5 nats": bool((self.lse_gap.abs() > 0.5).any()),
            "the sample is too small to say much": self.statistical.n_sampled < 30,
        }
        return tuple(text for text, is_so in said.items() if is_so)

    def __str__(self) -> str:
        """Return one line: the median bounds, and how loose the certain one is."""
        if self.is_exact:
            return "exact: nothing was absorbed"
        likely, certain = self.statistical.error.median(), self.deterministic.error.median()
        text = (
            f"error at most {likely:.2g} ({self.statistical.covers}), at most {certain:.2g} for every input "
            f"({self.looseness:.3g} times as loose); remainder mass {self.mass.median():.2g}"
        )
        return "; ".join([text, *self.flags])


@final
@dataclass(frozen=True)
class Bounds:
    """The figures of a certificate for rows of queries, [N, Q] each."""

    mass: Tensor
    lse_gap: Tensor
    likely: Tensor
    certain: Tensor

    @classmethod
    def none(cls, like: Tensor) -> "Bounds":
        """Return bounds of a read whose output is exact."""
        return cls(*(torch.zeros_like(like) for _ in range(4)))

    def without(self, is_exact: Tensor) -> "Bounds":
        """Return the bounds, zero where a read was replaced by an exact one."""
        return Bounds(*(part.masked_fill(is_exact, 0) for part in self.parts()))

    def shaped(self, batch: int, n_heads: int) -> "Bounds":
        """Return [N, Q] as [B, H, T]."""
        return Bounds(*(part.view(batch, n_heads, -1) for part in self.parts()))

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the four figures."""
        return self.mass, self.lse_gap, self.likely, self.certain


def certificate_of(pieces: Sequence[Bounds], n_sampled: Tensor) -> Certificate:
    """Return the certificate of a call from the bounds [B, H, T] of its pieces and the samples [N]."""
    mass, gap, likely, certain = (
        torch.cat(parts, -1) for parts in zip(*(piece.parts() for piece in pieces), strict=True)
    )
    is_exact = not bool(n_sampled.any())
    return Certificate(mass, gap, Statistical(likely, int(n_sampled.min())), Deterministic(certain), is_exact)


def bounds_of(queries: Queries, reading: Reading, clusters: Clusters, reservoir: Reservoir) -> Bounds:
    """Return the bounds of one read. Costs O(Q (R + C) (E + E_v)) products per row."""
    view, out, back = reading.view, reading.out, queries.back
    n_all = clusters.count.sum(-1)[:, None]  # [N, 1]
    total = reading.lse.masked_fill(reading.lse.isinf(), 0)[..., None]
    weight = (view.level - total).clamp(max=TOP).exp()  # [N, Q, C], of one token at the mean
    least = clusters.count[:, None] * weight
    half = back.square() @ clusters.spread.mT / 2
    known = reading.exact_sum - reading.exact_mass[..., None] * out
    floor = reading.exact_mass + least.sum(-1)
    estimate = _estimated(queries, reading, clusters, reservoir, weight, half)
    rest = (estimate.weight + (least * (1 + half)).sum(-1)).clamp(min=0)
    d = known + estimate.d
    along = Z * (estimate.variance / estimate.freedom).sqrt()
    noise = estimate.variance * (1 - Z * (2 / estimate.freedom).sqrt()).clamp(min=0)
    square = along.square() + (d.square().sum(-1) - noise).clamp(min=0)
    likely = (along + square.sqrt()) / floor.clamp(min=TINY)
    certain = _certain(queries, reading, clusters, known, least, floor)
    is_empty = (n_all == 0).expand_as(likely)
    size = torch.maximum(clusters.value.norm(dim=-1).amax(-1, keepdim=True), out.norm(dim=-1))
    likely = likely.masked_fill(is_empty, 0) + ROUNDING * size
    certain = certain.masked_fill(is_empty, 0) + ROUNDING * size
    sum_now = (reading.exact_mass + rest).clamp(min=TINY)
    return Bounds(rest / sum_now, sum_now.log(), torch.minimum(likely, certain), certain)


@final
@dataclass(frozen=True)
class _Estimate:
    """The absorbed tokens' part of D, its variance, and the weight that the clusters' variances miss."""

    d: Tensor  # [N, Q, E_v]
    variance: Tensor  # [N, Q]
    freedom: Tensor  # [N, 1]: directions that its error is spread over
    weight: Tensor  # [N, Q]


def _estimated(
    queries: Queries,
    reading: Reading,
    clusters: Clusters,
    reservoir: Reservoir,
    weight: Tensor,
    half: Tensor,
) -> _Estimate:
    """Difference estimator: sums that the clusters know, plus the sample's mean of what those miss."""
    back, out, view = queries.back, reading.out, reading.view
    n_all = clusters.count.sum(-1).float()[:, None]
    is_there = reservoir.priority.isfinite().float()[:, None]  # [N, 1, R]
    n_sampled = is_there.sum(-1).clamp(min=1)
    label = reservoir.label.clamp(min=0)
    spot = label[:, None].expand(-1, back.shape[1], -1)
    mean_key = clusters.key.gather(1, label[..., None].expand(-1, -1, back.shape[-1]))
    mean_value = clusters.value.gather(1, label[..., None].expand(-1, -1, out.shape[-1]))
    apart = reservoir.key - mean_key
    y = back @ apart.mT  # [N, Q, R]
    first = y + back.square() @ apart.square().mT / 2
    at_mean = weight.gather(2, spot)
    level = view.level.gather(2, spot) - reading.lse.masked_fill(reading.lse.isinf(), 0)[..., None]
    mine = (level + y).clamp(max=TOP).exp()
    common = (clusters.count[:, None] * weight).sum(-1, keepdim=True) / n_all.clamp(min=1)[..., None]
    on_value = (mine - at_mean - common * y) * is_there
    on_mean = (common * y - at_mean * first) * is_there
    on_out = (mine - at_mean - at_mean * first) * is_there
    missed = on_value @ reservoir.value + on_mean @ mean_value - on_out.sum(-1, keepdim=True) * out
    v_out, m_out = out @ reservoir.value.mT, out @ mean_value.mT
    v_m = (reservoir.value * mean_value).sum(-1)[:, None]
    squares = on_value.square() * reservoir.value.square().sum(-1)[:, None]
    squares += on_mean.square() * mean_value.square().sum(-1)[:, None]
    squares += on_out.square() * out.square().sum(-1, keepdim=True)
    squares += 2 * (on_value * on_mean * v_m - on_value * on_out * v_out - on_mean * on_out * m_out)
    squares = squares.clamp(min=0)
    per_token = squares.sum(-1) / n_sampled - (missed / n_sampled[..., None]).square().sum(-1)
    spread = per_token.clamp(min=0) * n_sampled / (n_sampled - 1).clamp(min=1)
    variance = n_all.square() * spread / n_sampled * (1 - n_sampled / n_all.clamp(min=1)).clamp(min=0)
    known = clusters.count[:, None] * weight * (1 + half)
    d = known @ clusters.value - known.sum(-1, keepdim=True) * out
    d = d + n_all[..., None] * (common * view.along + missed / n_sampled[..., None])
    freedom = _dimension(reservoir.value, is_there).clamp(1, FREEDOM)
    return _Estimate(d, variance, freedom, n_all * on_out.sum(-1) / n_sampled)


def _dimension(values: Tensor, is_there: Tensor) -> Tensor:
    """Return the effective dimension [N, 1] of the values: (sum of eigenvalues)^2 over that of squares."""
    weight = is_there.mT / is_there.sum(-1, keepdim=True).mT.clamp(min=1)  # [N, R, 1]
    apart = (values - (weight * values).sum(1, keepdim=True)) * is_there.mT
    covariance = apart.mT @ apart
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (trace.square() / covariance.square().sum((1, 2)).clamp(min=TINY))[:, None]


def _certain(
    queries: Queries, reading: Reading, clusters: Clusters, known: Tensor, least: Tensor, floor: Tensor
) -> Tensor:
    """Return the bound from balls, and never more than the farthest that a mean of the values can lie."""
    back, out, view = queries.back, reading.out, reading.view
    reach = back.norm(dim=-1, keepdim=True) * clusters.key_radius[:, None]
    lean = back @ (clusters.key_anchor - clusters.key).mT
    top, bottom = (reach + lean).clamp(min=1e-6), (reach - lean).clamp(min=0)
    variance = (back.abs() @ clusters.spread.sqrt().mT).square()
    variance = torch.minimum(variance, top * bottom).clamp(max=1e30)
    rise = torch.logaddexp(2 * top.log() - variance / top, variance.log() + top)
    rise = (rise - (top.square() + variance).log()).clamp(min=0)
    total = reading.lse.masked_fill(reading.lse.isinf(), 0)[..., None]
    empty = (clusters.count == 0)[:, None]
    most = (view.log_n + view.level + rise - total).clamp(max=TOP).exp() * SLACK
    model = torch.minimum(torch.maximum((view.logits - total).clamp(max=TOP).exp(), least), most)
    model = model.masked_fill(empty, 0)
    most = most.masked_fill(empty, 0)
    far = torch.cdist(out, clusters.value_anchor, compute_mode="donot_use_mm_for_euclid_dist")
    base = known + model @ clusters.value_anchor - model.sum(-1, keepdim=True) * out
    radius = clusters.value_radius[:, None]
    sum_of = (torch.maximum(most - model, model - least) * far + most * radius).sum(-1)
    by_balls = (base.norm(dim=-1) + sum_of) / floor.clamp(min=TINY)
    middle = reading.exact_sum / reading.exact_mass.clamp(min=TINY)[..., None]
    off = (middle - out).norm(dim=-1).masked_fill(reading.exact_mass == 0, 0)
    widest = torch.maximum((far + radius).masked_fill(empty, 0).amax(-1), off)
    return torch.minimum(by_balls, widest) * SLACK
