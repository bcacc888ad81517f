"""Fine-tuning: from the closed form to the predictor that is cheapest for its errors.   (floor 5 · engine)

Let w be what missing a neuron costs, in units of what computing it costs: its squared contribution
(|activation| |w_out|)^2 times `worth`. A score z should be above 0 exactly where E[w | input] > 1, and

    loss = softplus(z) + w softplus(-z)

is least, for each input, at z = log E[w | input]: a logistic regression whose two classes are bytes read in
vain and contribution missed. It is convex in the scores and smooth, and leaving it at another level, z > c,
is optimal for contributions exp(-c) times as dear: one fit serves a whole range of budgets.

The start is `whitened_svd` at a level, brought to this unit by the slope of its law. Adam moves both factors
and the biases; after rounding to int8 the biases are fitted again, neuron by neuron, by Newton steps.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.base.rng import generator
from winnow.engine.sparsity.frontier import (
    Choice,
    LabelledRows,
    choice,
    inverse_loss_root,
    levels,
    loss_root,
)
from winnow.engine.sparsity.predictor import LowRankPredictor
from winnow.engine.weights import Layer
from winnow.kernels import QuantisedMatrix

RATE = 0.02  # of Adam, in units of a factor's root mean square; in logits for the biases
NEWTON_STEPS = 3
PRIOR_ROWS = 1.0  # curvature that stands for what is known before the rows are seen


@dataclass(frozen=True)
class Effort:
    """How long to fit: gradient steps and rows per step."""

    steps: int = 300
    rows: int = 192

    def flops(self, rank: int, width: int, n_neurons: int) -> float:
        """Operations that one fit takes, forwards and back."""
        return 6.0 * self.steps * self.rows * rank * (width + n_neurons)


def tuned(
    start: LowRankPredictor, rows: LabelledRows, worth: float | int, effort: Effort, seed: int
) -> LowRankPredictor:
    """Return a predictor of `start`'s rank and bytes, fitted to `rows`.

    `worth` is how many records may be read to keep one unit of squared contribution. Equal arguments give
    equal bits. Costs `effort.flops`, and a product of all rows with the factors for the biases.
    """
    down, up, bias = (t.clone() for t in _in_logits(start, rows, worth))
    sizes = [t.square().mean().sqrt().item() for t in (down, up)]
    rates = [RATE * max(sizes[0], 1e-12), RATE * max(sizes[1], 1e-12), RATE]
    draws = generator(seed)
    optimiser = torch.optim.Adam([{"params": [t]} for t in (down, up, bias)], betas=(0.9, 0.99))
    for step in range(effort.steps):
        fading = 0.5 * (1 + math.cos(math.pi * step / effort.steps))
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * fading
        batch = torch.randint(len(rows.view), (min(effort.rows, len(rows.view)),), generator=draws)
        view, missed = rows.view[batch], worth * rows.energy[batch]
        hidden = view @ down.T
        chance = torch.sigmoid(hidden @ up.T + bias)
        # The loss's derivative by the scores; written out, a step takes a third of what autograd takes.
        slope = (chance * (1 + missed)).sub_(missed).div_(chance.numel())
        down.grad, up.grad, bias.grad = (slope @ up).T @ view, slope.T @ hidden, slope.sum(0)
        optimiser.step()
    rounded = replace(
        start, down=QuantisedMatrix.of(down), up=QuantisedMatrix.of(up), bias=bias, kind="low-rank"
    )
    return replace(rounded, bias=_refitted(rounded, rows, worth))


def tuned_choices(layer: Layer, predictor: LowRankPredictor, judged: LabelledRows) -> list[Choice]:
    """Return the settings of one fitted predictor: its levels, counted on rows that were not fitted."""
    found = [
        choice(layer, replace(predictor, bias=predictor.bias - level), density, loss)
        for level, density, loss in levels(predictor.scores(judged.view), judged.energy)
    ]
    return [c for c in found if c is not None]


def _in_logits(
    start: LowRankPredictor, rows: LabelledRows, worth: float | int
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "F R"], Float[Tensor, " F"]]:
    """Return the factors and bias whose scores are log E[w], as far as the normal law of `start` goes.

    The law, log(worth scale^2 g(u)), is replaced by its tangent where w is 1.
    """
    residual = rows.before - start.scores(rows.view)  # its mean is the threshold that `start` holds
    spread = residual.std(0).clamp_min(1e-6)
    size = spread * _size(rows)
    u = inverse_loss_root(1 / (math.sqrt(max(worth, 1e-30)) * size.clamp_min(1e-30))).clamp_max(12)
    slope = 2 * (loss_root(u + 0.25).log() - loss_root(u - 0.25).clamp_min(1e-12).log()) / 0.5 / spread
    bias = (start.bias + residual.mean(0) - u * spread) * slope
    return start.down.weight.float(), start.up.weight.float() * slope[:, None], bias


def _size(rows: LabelledRows) -> Float[Tensor, " F"]:
    """Return what each neuron's activation is multiplied with, where it is positive."""
    active = rows.before.clamp_min(0).square().sum(0)
    return (rows.energy.sum(0) / active.clamp_min(1e-30)).sqrt()


def _refitted(predictor: LowRankPredictor, rows: LabelledRows, worth: float | int) -> Float[Tensor, " F"]:
    """Return the biases that are best for the factors as they are."""
    bare = predictor.scores(rows.view) - predictor.bias
    bias = predictor.bias.clone()
    missed = worth * rows.energy
    for _ in range(NEWTON_STEPS):
        chance = torch.sigmoid(bare + bias)
        slope = (chance - missed * (1 - chance)).sum(0)
        curvature = (chance * (1 - chance) * (1 + missed)).sum(0) + PRIOR_ROWS
        bias -= (slope / curvature).clamp(-0.5, 0.5)
    return bias.contiguous()
