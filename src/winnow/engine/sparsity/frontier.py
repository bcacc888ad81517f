"""Frontier: what each rank and threshold would cost and lose in one layer.   (floor 5 · engine)

A predicted score s leaves a residual whose spread e is known per neuron. Leaving neuron f out loses

    E[max(s + e z, 0)^2] |w_out|^2 = g(s / e) e^2 |w_out|^2,     g(u) = (1 + u^2) Phi(u) + u phi(u)

with z normal. For a given number of neurons the least loss is to keep those where this exceeds one level
for all; the level turns into one threshold per neuron, because g is increasing. Levels and losses are then
measured on a sample of the layer's inputs, so the normal law steers the choice but enters no figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from winnow.engine.model import activations
from winnow.engine.sparsity.observe import LayerInputs
from winnow.engine.sparsity.predictor import Factors, LowRankPredictor, whitened_svd
from winnow.engine.weights import Layer
from winnow.kernels import NeuronRecords

LEVEL_ROWS = 1024  # rows from which the levels are taken
# Densities tried, as multiples of the share of neurons that truly fire.
DENSITY_STEPS = tuple(0.3 * 1.1**i for i in range(27))


@dataclass(frozen=True)
class Choice:
    """One setting of one layer: its bytes per token and the squared loss it causes."""

    rank: int  # 0: the layer runs dense
    thresholds: Float[Tensor, " F"]
    density: float
    predictor_bytes: int
    n_bytes: float | int  # the predictor's and the selected records'
    loss: float | int


@dataclass(frozen=True)
class Frontier:
    """All choices of one layer, and the factors from which any of them is made."""

    factors: Factors
    choices: tuple[Choice, ...]

    def predictor(self, choice: Choice) -> LowRankPredictor | None:
        """Return the predictor of `choice`, or None where the choice is to run dense."""
        return self.factors.predictor(choice.rank, choice.thresholds) if choice.rank else None


def frontier(layer: Layer, inputs: LayerInputs, ranks: Sequence[int]) -> Frontier:
    """Measure every rank in `ranks` at a ladder of levels on the layer's sample.

    Costs one eigenproblem of size D and, per choice, a pass over the sample's N x F activations. The loss
    takes missed contributions as orthogonal; `calibrate` measures what a unit of it causes.
    """
    records = layer.mlp
    x, out_norms = inputs.rows, records.w_out.float().norm(dim=-1)
    active = activations(layer, x)
    before = x @ records.w_in.float().T + records.bias
    energy = (active * out_norms).square()
    fired_share = (active != 0).double().mean().item()
    steps = sorted({min(step * fired_share, 1.0) for step in DENSITY_STEPS if fired_share > 0})
    factors = whitened_svd(records.w_in.float(), records.bias, inputs.moments)
    full_bytes = mlp_bytes(records)
    open_thresholds = torch.zeros(records.n_neurons)
    choices = [Choice(0, open_thresholds, 1.0, 0, full_bytes, 0.0)]
    for rank in ranks:
        predictor = factors.predictor(rank, open_thresholds)
        scores = predictor.scores(x)
        spread = (before - scores).square().mean(0).sqrt().clamp_min(1e-6)
        scale = spread * out_norms
        expected = _loss_root(scores[:LEVEL_ROWS] / spread) * scale
        for level in _upper_quantiles(expected, steps):
            thresholds = spread * _inverse_loss_root(level / scale)
            selected = scores > thresholds
            density = selected.double().mean().item()
            loss = energy.masked_fill(selected, 0).sum(-1).mean().item()
            n_bytes = predictor.n_bytes + density * full_bytes
            choices.append(Choice(rank, thresholds, density, predictor.n_bytes, n_bytes, loss))
    return Frontier(factors, tuple(choices))


def mlp_bytes(records: NeuronRecords) -> int:
    """Return the bytes of an MLP's weights in bfloat16, whatever precision it is measured in."""
    halves = 3 if records.is_gated else 2
    return halves * records.n_neurons * records.width * torch.bfloat16.itemsize


def _loss_root(u: Tensor) -> Tensor:
    """Return the root of g(u), increasing from 0; about u for large u."""
    cdf = torch.special.ndtr(u.double())
    density = torch.exp(-0.5 * u.double().square()) / (2 * torch.pi) ** 0.5
    return ((1 + u.double().square()) * cdf + u.double() * density).clamp_min(0).sqrt().float()


def _inverse_loss_root(value: Tensor) -> Tensor:
    """Return u >= -6 with ``_loss_root(u) == value``, from a table that is linear between its points."""
    table = torch.linspace(-6, 12, 1801, dtype=torch.float64)
    inverse = np.interp(value.double().numpy(), _loss_root(table).double().numpy(), table.numpy())
    return torch.where(value > 12, value, torch.from_numpy(inverse).float())


def _upper_quantiles(values: Float[Tensor, "N F"], shares: Sequence[float]) -> list[float]:
    """Return levels that the given shares of all values exceed."""
    flat = np.sort(values.flatten().numpy())
    last = len(flat) - 1
    return [float(flat[min(max(round((1 - share) * last), 0), last)]) for share in shares]
