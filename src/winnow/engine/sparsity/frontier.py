"""Frontier: what each setting of a layer would cost and lose.   (floor 5 · engine)

A setting is a rank, or a number of signs, and a level. A predicted score s leaves a residual whose spread e
is known per neuron. Leaving neuron f out loses

    E[max(s + e z, 0)^2] |w_out|^2 up^2 = g(s / e) e^2 |w_out|^2 up^2,     g(u) = (1 + u^2) Phi(u) + u phi(u)

with z normal and up the root mean square of what multiplies a gated neuron, 1 elsewhere. For a given number
of neurons the least loss is to keep those where this exceeds one level for all; the level turns into one
threshold per neuron, because g is increasing. A gate needs no law: |gate| |w_out| up is what it says.
The laws steer the choice and enter no figure: densities and losses are counted on rows of the layer's
sample that were not fitted, for all levels at once, from the sums over one histogram.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from winnow.base.rng import generator
from winnow.engine.sparsity.observe import LayerInputs
from winnow.engine.sparsity.predictor import (
    WORD,
    Factors,
    GatePredictor,
    IndexPredictor,
    Lookahead,
    LowRankPredictor,
    Predictor,
    ScoredPredictor,
    whitened_svd,
)
from winnow.engine.weights import Layer, product
from winnow.kernels import NeuronRecords

Kind = Literal["svd", "low-rank", "gate", "index"]
RANK_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12)  # ranks tried, in 1/32 of the width
SIGN_STEPS = (1, 2, 3, 4, 6, 8)  # signs tried, in words per 256 of the width
SIGNS_PER_RANK = (2, 4)  # coordinates that the signs stand for: fewer are told apart better, and are less
INDEX_SEED = 0
SHARES = tuple(0.002 * 1.15**i for i in range(45))  # densities tried, up to nearly 1
SPREAD_ROWS = 2048  # rows from which a predictor's residual is known
HELD_BLOCKS = 40  # the sample is cut into so many blocks of neighbouring rows; every fifth is held out
BINS = 4096
TYPICAL_LOSS = 0.02  # of a layer's squared contributions: its divergence is measurable and small


@dataclass(frozen=True)
class Choice:
    """One setting of one layer: its predictor, its bytes per token and the squared loss it causes."""

    predictor: Predictor | None  # None: the layer runs dense
    density: float
    n_bytes: float | int  # all that the MLP reads, the predictor included
    loss: float | int

    @property
    def kind(self) -> str:
        """What decides: the predictor's kind, or "dense"."""
        return "dense" if self.predictor is None else self.predictor.kind

    @property
    def predictor_bytes(self) -> int:
        """Bytes of the predictor alone."""
        return 0 if self.predictor is None else self.predictor.n_bytes


@dataclass(frozen=True)
class LabelledRows:
    """Rows of a layer's view with the truth about them: pre-activations and squared contributions."""

    view: Float[Tensor, "N D"]
    before: Float[Tensor, "N F"]  # of the gate, in gated MLPs
    energy: Float[Tensor, "N F"]  # (activation * |w_out|)^2


def labelled(layer: Layer, inputs: LayerInputs, rows: Bool[Tensor, " N"] | None = None) -> LabelledRows:
    """Compute the truth about the sampled rows that `rows` picks; two or three products N x D x F."""
    own = inputs.rows if rows is None else inputs.rows[rows]
    view = inputs.views if rows is None else inputs.views[rows]
    mlp = layer.mlp
    with torch.no_grad():
        before = product(own, mlp.w_in) + mlp.bias
        active = layer.activation(before)
        if mlp.is_gated:
            active = active * (product(own, mlp.w_up) + mlp.bias_up)
        energy = active.mul_(mlp.w_out.float().norm(dim=-1)).square_()
    return LabelledRows(view, before, energy)


def held_out(n_rows: int) -> Bool[Tensor, " N"]:
    """Say which rows of a sample judge and are never fitted: a fifth, in blocks, as neighbours are alike."""
    return (torch.arange(n_rows) * HELD_BLOCKS // max(n_rows, 1)) % 5 == 4


def frontier(
    layer: Layer, inputs: LayerInputs, kinds: Sequence[Kind], lookahead: Lookahead = Lookahead.SAME
) -> tuple[Choice, ...]:
    """Return the settings of `kinds` that could pay in this layer, the dense one first.

    Costs one eigenproblem of size D, and per rank one product over at most SPREAD_ROWS rows and those held
    out. The loss takes missed contributions as orthogonal; `calibrate` measures what a unit of it causes.
    """
    held = held_out(inputs.n_sampled)
    fitted = ~held
    fitted[fitted.nonzero().flatten()[SPREAD_ROWS:]] = False
    seen, judged = labelled(layer, inputs, fitted), labelled(layer, inputs, held)
    found = [dense_choice(layer)]
    if "gate" in kinds and layer.mlp.is_gated:
        found += _gate_choices(layer, seen, judged)
    if "svd" in kinds or "index" in kinds:
        factors = whitened_svd(layer.mlp.w_in.float(), layer.mlp.bias, inputs.moments, lookahead)
        if "svd" in kinds:
            found += _scored_choices(layer, _svd_bases(factors, layer.mlp), seen, judged)
        if "index" in kinds:
            found += _scored_choices(layer, _index_bases(factors, layer.mlp), seen, judged)
    return tuple(found)


def dense_choice(layer: Layer) -> Choice:
    """Return the setting that computes every neuron."""
    return Choice(None, 1.0, mlp_bytes(layer.mlp), 0.0)


def typical(choices: Sequence[Choice]) -> Choice:
    """Return the setting whose loss is nearest to the typical share of the layer's largest."""
    largest = max(c.loss for c in choices)
    lossy = [c for c in choices if c.loss > 0]
    return min(lossy, key=lambda c: abs(c.loss - TYPICAL_LOSS * largest)) if lossy else choices[0]


def mlp_bytes(records: NeuronRecords) -> int:
    """Return the bytes of an MLP's weights in bfloat16, whatever precision it is measured in."""
    halves = 3 if records.is_gated else 2
    return halves * records.n_neurons * records.width * torch.bfloat16.itemsize


def bytes_read(records: NeuronRecords, predictor: Predictor, density: float | int) -> float:
    """Return what an MLP reads per token at this density, its weights counted in bfloat16."""
    full, part = mlp_bytes(records), density
    if isinstance(predictor, GatePredictor):
        part = (1 + 2 * density) / 3
    return predictor.n_bytes + part * full


def levels(priority: Float[Tensor, "N F"], energy: Float[Tensor, "N F"]) -> list[tuple[float, float, float]]:
    """Return (level, share of entries above it, energy per row at or below it) for the ladder of SHARES.

    One pass over the entries for all levels, which stand at the edges of BINS equal bins.
    """
    low, high = priority.min().item(), priority.max().item()
    if not high > low:
        return []
    place = ((priority - low) * (BINS / (high - low))).clamp_(0, BINS - 1).to(torch.int64).flatten()
    count = torch.bincount(place, minlength=BINS).double()
    lost = torch.bincount(place, weights=energy.flatten().double(), minlength=BINS)
    above = count.flip(0).cumsum(0).flip(0) / len(place)  # share at or above each edge
    below = torch.cat([torch.zeros(1, dtype=torch.float64), lost.cumsum(0)[:-1]]) / len(priority)
    edges = sorted({int((above > share).sum()) for share in SHARES if share < 1} - {BINS})
    step = (high - low) / BINS
    return [(low + edge * step, above[edge].item(), below[edge].item()) for edge in edges]


def choice(layer: Layer, predictor: Predictor, density: float | int, loss: float | int) -> Choice | None:
    """Return this setting with its bytes, or None where it reads no less than the dense layer."""
    n_bytes = bytes_read(layer.mlp, predictor, density)
    return None if n_bytes >= mlp_bytes(layer.mlp) else Choice(predictor, float(density), n_bytes, loss)


def loss_root(u: Tensor) -> Tensor:
    """Return the root of g(u), increasing from 0; about u for large u."""
    cdf = torch.special.ndtr(u.double())
    density = torch.exp(-0.5 * u.double().square()) / (2 * torch.pi) ** 0.5
    return ((1 + u.double().square()) * cdf + u.double() * density).clamp_min(0).sqrt().float()


def inverse_loss_root(value: Tensor) -> Tensor:
    """Return u >= -6 with ``loss_root(u) == value``, from a table that is linear between its points."""
    inverse = np.interp(value.double().numpy(), _ROOTS.double().numpy(), _POINTS.numpy())
    return torch.where(value > 12, value, torch.from_numpy(inverse).float())


_POINTS = torch.linspace(-6, 12, 1801, dtype=torch.float64)
_ROOTS = loss_root(_POINTS)
_LOG_ROOTS = _ROOTS.log()


def _log_loss_root(u: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
    """Return the logarithm of `loss_root`, from a table; below -6 it is taken as constant."""
    place = ((u + 6) * 100).round_().clamp_(0, 1800).to(torch.int32)
    return torch.where(u > 12, u.clamp_min(1).log(), _LOG_ROOTS[place])


def _svd_bases(factors: Factors, records: NeuronRecords) -> Iterator[LowRankPredictor]:
    """Yield the closed form at every rank tried."""
    unit = max(records.width // 32, 1)
    for rank in [unit * step for step in RANK_STEPS if unit * step <= min(records.width, records.n_neurons)]:
        yield factors.predictor(rank, torch.zeros(records.n_neurons))


def _index_bases(factors: Factors, records: NeuronRecords) -> Iterator[IndexPredictor]:
    """Yield an index for every number of signs tried and every number of coordinates that they stand for."""
    for step in SIGN_STEPS:
        n_signs = WORD * step * max(records.width // 256, 1)
        ranks = {min(n_signs // each, records.width, records.n_neurons) for each in SIGNS_PER_RANK}
        for rank in sorted(ranks):
            yield factors.index(n_signs, rank, generator(INDEX_SEED))


def _scored_choices(
    layer: Layer, bases: Iterable[ScoredPredictor], seen: LabelledRows, judged: LabelledRows
) -> list[Choice]:
    """Return the levels of predictors whose thresholds are 0."""
    worth = _worth(layer, seen)
    found = []
    for base in bases:
        spread = (seen.before - base.scores(seen.view)).square().mean(0).sqrt().clamp_min(1e-6)
        scale = (spread * worth).clamp_min(1e-30)
        priority = _log_loss_root(base.scores(judged.view) / spread).add_(scale.log())
        for level, density, loss in levels(priority, judged.energy):
            thresholds = spread * inverse_loss_root(torch.tensor(level).exp() / scale)
            predictor = replace(base, bias=base.bias - thresholds)
            found.append(choice(layer, predictor, density, loss))
    return [c for c in found if c is not None]


def _gate_choices(layer: Layer, seen: LabelledRows, judged: LabelledRows) -> list[Choice]:
    worth = _worth(layer, seen).clamp_min(1e-30)
    size = layer.activation(judged.before).abs()
    priority = (size * worth).clamp_min(1e-30).log()
    ladder = levels(priority, judged.energy)
    found = [
        choice(layer, GatePredictor(torch.tensor(level).exp() / worth), density, loss)
        for level, density, loss in ladder
    ]
    if layer.activation.name == "relu":  # a gate that is zero loses nothing
        density = (size > 0).double().mean().item()
        found.append(choice(layer, GatePredictor(torch.zeros_like(worth)), density, 0.0))
    return [c for c in found if c is not None]


def _worth(layer: Layer, seen: LabelledRows) -> Float[Tensor, " F"]:
    """Return what a neuron's activation is multiplied with: |w_out|, and the size of `up` where gated."""
    out_norms = layer.mlp.w_out.float().norm(dim=-1)
    if not layer.mlp.is_gated:
        return out_norms
    gate_energy = layer.activation(seen.before).square().sum(0).clamp_min(1e-30)
    return (seen.energy.sum(0) / gate_energy).sqrt()
