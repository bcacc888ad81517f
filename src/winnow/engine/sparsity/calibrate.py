"""Calibrate: the cheapest plan that keeps the fidelity asked for.   (floor 5 · engine)

    observe     one dense pass over the text: input moments and samples, layer by layer
    frontier    per layer, what each rank and threshold costs in bytes and loses locally
    weigh       per layer, how much divergence a unit of local loss causes (measured)
    choose      one multiplier for all layers: the least bytes whose summed loss fits the target
    verify      the plan's own divergence on held-out windows; tighten or relax, and choose again

Losses of different layers add up: a divergence is quadratic in a small perturbation and the layers' errors
are nearly uncorrelated. Where that is not so, `verify` sees it, and its figure is the one that counts.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from winnow.base.errors import ModelError, UsageError
from winnow.base.progress import Progress
from winnow.engine.model import dense_mlp
from winnow.engine.sparsity.fidelity import Fidelity, compare, divergence, window_logits
from winnow.engine.sparsity.frontier import Choice, Frontier, frontier, mlp_bytes
from winnow.engine.sparsity.observe import observe
from winnow.engine.sparsity.plan import Plan, Provenance
from winnow.engine.sparsity.sparse_mlp import SparseMlp
from winnow.engine.weights import Weights
from winnow.kernels import relu

RANKS = 16  # ranks tried: width / 32, 2 * width / 32, ... width / 2
MARGIN = 0.9  # a plan is held to this share of the target, since other text will differ
AIM = 0.95  # and aimed at this share of that, since settings come in steps
PROBES = 6  # plans verified at most
SURCHARGES = (*(0.1 * i for i in range(30)), 5.0, 10.0, 100.0)  # on predictor bytes, to hold their share


@dataclass(frozen=True)
class CalibrationOptions:
    """What to aim for, and how much to look at.

    `target_kld` is in nats per token; `max_predictor_share` bounds the predictors' bytes by the MLPs'.
    """

    target_kld: float = 0.001
    max_predictor_share: float = 1 / 12
    sample_rows: int = 8192
    probe_windows: int = 4
    validation_share: float = 0.1
    quiet: bool = False

    def __post_init__(self) -> None:
        """Refuse a target that no plan can meet or that means nothing."""
        if not 0 < self.target_kld < 10:
            raise UsageError(f"--target-kld is {self.target_kld}; expected nats per token, between 0 and 10.")


def calibrate(
    weights: Weights, model_hash: str, texts: Sequence[Int64[Tensor, " _"]], options: CalibrationOptions
) -> Plan:
    """Return the plan with the fewest bytes per token whose divergence on held-out windows meets the target.

    Every tenth window of `texts` is held out for verification. Exact in what it computes: a plan only leaves
    neurons out. Costs one dense pass over the text, 3 forward passes over a few windows per layer, and at
    most 6 verifications. Raises ModelError for activations that are never exactly zero, such as SiLU.
    """
    if weights.config.activation is not relu:
        raise ModelError(
            f"This model's activation is {weights.config.activation.name}, whose neurons are never exactly "
            "zero; plans are made for ReLU models. It runs dense."
        )
    every = round(1 / options.validation_share)
    validation = list(texts[every - 1 :: every])
    training = [ids for i, ids in enumerate(texts) if i % every != every - 1]
    if not validation:
        raise UsageError(f"The text fills {len(texts)} windows; expected at least {every}. Give more --text.")
    progress = Progress("reading the text", len(training), quiet=options.quiet)
    seen = observe(weights, training, options.sample_rows, progress.update)
    step = max(weights.config.width // 32, 1)
    ranks = [step * (i + 1) for i in range(RANKS)]
    progress = Progress("fitting predictors", len(seen), quiet=options.quiet)
    frontiers = []
    for index, (layer, inputs) in enumerate(zip(weights.layers, seen, strict=True)):
        frontiers.append(frontier(layer, inputs, ranks))
        progress.update(index + 1)
    prices = _weigh(weights, frontiers, training[: options.probe_windows], options.quiet)
    search = _Search(weights, frontiers, prices, validation, options.max_predictor_share)
    return search.best(options, model_hash, _text_hash(texts))


def _text_hash(texts: Sequence[Int64[Tensor, " _"]]) -> str:
    digest = hashlib.sha256()
    for ids in texts:
        digest.update(ids.numpy().tobytes())
    return digest.hexdigest()


def _weigh(
    weights: Weights, frontiers: Sequence[Frontier], probes: Sequence[Int64[Tensor, " _"]], quiet: bool
) -> list[float]:
    """Return, per layer, the divergence in nats that one unit of its local loss causes."""
    progress = Progress("weighing layers", len(frontiers), quiet=quiet)
    prices = []
    with torch.inference_mode():
        dense = [window_logits(weights, ids, dense_mlp) for ids in probes]
        for index, layer in enumerate(frontiers):
            choice = _typical(layer.choices)
            alone: list = [None] * len(frontiers)
            alone[index] = layer.predictor(choice)
            sparse = [window_logits(weights, ids, SparseMlp(alone)) for ids in probes]
            nats = torch.cat([divergence(d, s) for d, s in zip(dense, sparse, strict=True)]).mean().item()
            prices.append(nats / choice.loss if choice.loss > 0 else 0.0)
            progress.update(index + 1)
    return prices


def _typical(choices: Sequence[Choice]) -> Choice:
    """Return the lossy choice in the middle of the range, where the divergence is measurable and small."""
    lossy = sorted((c for c in choices if c.loss > 0), key=lambda c: c.loss)
    return lossy[len(lossy) // 2] if lossy else choices[0]


class _Search:
    """Chooses per-layer settings for a total loss and verifies what they do together."""

    def __init__(
        self,
        weights: Weights,
        frontiers: Sequence[Frontier],
        prices: Sequence[float],
        validation: Sequence[Int64[Tensor, " _"]],
        max_predictor_share: float,
    ) -> None:
        total_bytes = sum(mlp_bytes(layer.mlp) for layer in weights.layers)
        self.max_predictor_bytes = max_predictor_share * total_bytes
        self.weights = weights
        self.frontiers = frontiers
        # Per layer and choice: bytes read, bytes of predictor, nats lost.
        self.ladders = [
            (
                np.array([c.n_bytes for c in layer.choices], dtype=float),
                np.array([c.predictor_bytes for c in layer.choices], dtype=float),
                price * np.array([c.loss for c in layer.choices], dtype=float),
            )
            for layer, price in zip(frontiers, prices, strict=True)
        ]
        self.validation = validation

    def best(self, options: CalibrationOptions, model_hash: str, text_hash: str) -> Plan:
        """Return the cheapest verified plan; the all-dense one if none of the sparse ones holds."""
        wanted = options.target_kld * MARGIN
        budget, best, best_bytes = AIM * wanted, None, float("inf")
        progress = Progress("verifying plans", PROBES, quiet=options.quiet)
        for probe in range(PROBES):
            choices = self.choose(budget)
            plan, measured = self.verify(choices, options, model_hash, text_hash)
            n_bytes = sum(c.n_bytes for c in choices)
            if measured.kld_mean <= wanted and n_bytes < best_bytes:
                best, best_bytes = plan, n_bytes
            progress.update(probe + 1, f"KLD {measured.kld_mean:.2g}, density {measured.mlp_density:.3f}")
            budget *= min(max(AIM * wanted / max(measured.kld_mean, 1e-9), 0.2), 5.0)
        if best is None:
            best, _ = self.verify(self.choose(0.0), options, model_hash, text_hash)
        return best

    def choose(self, budget: float | int) -> list[Choice]:
        """Return the settings of fewest bytes whose priced losses sum to at most `budget` nats.

        Predictors keep within their share of bytes: where they would not, their bytes count at a surcharge.
        """
        candidates = [self._within(budget, surcharge) for surcharge in SURCHARGES]
        fitting = [
            c for c in candidates if sum(choice.predictor_bytes for choice in c) <= self.max_predictor_bytes
        ]
        # The dense choice has no predictor, so at a high surcharge something always fits.
        return min(fitting or candidates[-1:], key=lambda c: sum(choice.n_bytes for choice in c))

    def _within(self, budget: float | int, surcharge: float | int) -> list[Choice]:
        """Bisect the multiplier, in bytes per nat: a higher one buys more fidelity."""
        costs = [n_bytes + surcharge * predictor for n_bytes, predictor, _ in self.ladders]
        losses = [nats for _, _, nats in self.ladders]
        low, high = 1e-3, 1e30
        chosen = [int((cost + high * nats).argmin()) for cost, nats in zip(costs, losses, strict=True)]
        for _ in range(60):
            middle = (low * high) ** 0.5
            tried = [int((cost + middle * nats).argmin()) for cost, nats in zip(costs, losses, strict=True)]
            if sum(nats[i] for nats, i in zip(losses, tried, strict=True)) <= budget:
                chosen, high = tried, middle
            else:
                low = middle
        return [f.choices[i] for f, i in zip(self.frontiers, chosen, strict=True)]

    def verify(
        self, choices: Sequence[Choice], options: CalibrationOptions, model_hash: str, text_hash: str
    ) -> tuple[Plan, Fidelity]:
        """Return the plan made of `choices` and its measured fidelity on the held-out windows."""
        layers = tuple(f.predictor(choice) for f, choice in zip(self.frontiers, choices, strict=True))
        blank = Provenance(model_hash, text_hash, "same-layer", "svd", options.target_kld, 0.0, 1.0, 1.0, 0)
        measured = compare(self.weights, Plan(blank, layers), self.validation, lambda done: None)
        provenance = Provenance(
            model_hash=model_hash,
            text_hash=text_hash,
            lookahead="same-layer",
            predictor="svd",
            target_kld=options.target_kld,
            measured_kld=measured.kld_mean,
            measured_density=measured.mlp_density,
            measured_recall=measured.predictor_recall,
            validation_tokens=measured.tokens,
        )
        return Plan(provenance, layers, measured.layers), measured
