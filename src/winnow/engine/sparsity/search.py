"""Search: the settings of all layers that read the least within a budget of nats.   (floor 5 · engine)

Neurons first, by the prices of their layers' losses; then heads, by those of theirs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from winnow.engine.sparsity.frontier import Choice
from winnow.engine.sparsity.heldout import HeldOut, Measured
from winnow.engine.sparsity.predictor import HeadFit, HeadPredictor, keeping

HEAD_STEPS = 32  # shares of the heads are tried in steps of 1 / 32
HEAD_TRIES = 5  # that often steps can be halved
PRICED_SHARE = 0.85  # of one layer's heads, kept to learn what its others cost
SURCHARGES = (*(0.1 * i for i in range(30)), 5.0, 10.0, 100.0)  # on predictor bytes, to hold their share


@dataclass(frozen=True)
class Chosen:
    """One setting per layer, and what they were chosen at.

    `rate` is in bytes per nat, `surcharge` is what a byte of predictor counted beyond itself.
    """

    choices: tuple[Choice, ...]
    rate: float
    surcharge: float

    @property
    def n_bytes(self) -> float:
        """What all MLPs read per token."""
        return float(sum(c.n_bytes for c in self.choices))


class Ladders:
    """The settings of every layer, with one measured price per layer, in nats per unit of loss."""

    def __init__(
        self, layers: Sequence[Sequence[Choice]], prices: Sequence[float], max_predictor_bytes: float
    ) -> None:
        """Take the settings as they are; predictors must keep within `max_predictor_bytes` together."""
        self.layers = layers
        self.max_predictor_bytes = max_predictor_bytes
        # Per layer and setting: bytes read, bytes of predictor, nats lost.
        self.columns = [
            (
                np.array([c.n_bytes for c in choices], dtype=float),
                np.array([c.predictor_bytes for c in choices], dtype=float),
                price * np.array([c.loss for c in choices], dtype=float),
            )
            for choices, price in zip(layers, prices, strict=True)
        ]

    def choose(self, budget: float | int) -> Chosen:
        """Return the settings of fewest bytes whose priced losses sum to at most `budget` nats.

        Where the predictors would not keep within their share, their bytes count at a surcharge.
        """
        candidates = [self._within(budget, surcharge) for surcharge in SURCHARGES]
        fitting = [
            c
            for c in candidates
            if sum(each.predictor_bytes for each in c.choices) <= self.max_predictor_bytes
        ]
        # The dense choice has no predictor, so at a high surcharge something always fits.
        return min(fitting or candidates[-1:], key=lambda c: c.n_bytes)

    def _within(self, budget: float | int, surcharge: float | int) -> Chosen:
        """Bisect the rate: a higher one buys more fidelity."""
        costs = [n_bytes + surcharge * predictor for n_bytes, predictor, _ in self.columns]
        losses = [nats for _, _, nats in self.columns]
        low, high = 1e-3, 1e30
        places = self._at(costs, high)
        for _ in range(60):
            middle = (low * high) ** 0.5
            tried = self._at(costs, middle)
            if sum(nats[i] for nats, i in zip(losses, tried, strict=True)) <= budget:
                places, high = tried, middle
            else:
                low = middle
        chosen = tuple(choices[i] for choices, i in zip(self.layers, places, strict=True))
        return Chosen(chosen, high, float(surcharge))

    def _at(self, costs: Sequence[np.ndarray], rate: float) -> list[int]:
        return [
            int((cost + rate * nats).argmin()) for cost, (_, _, nats) in zip(costs, self.columns, strict=True)
        ]


@final
class HeadLadder:
    """Any share of the kv heads, spread over the layers by what each loses."""

    def __init__(self, fits: Sequence[HeadFit], probe: HeldOut, tick: Callable[[int], None]) -> None:
        """Measure on `probe` what leaving out the quietest heads of each layer alone costs.

        One sparse pass over the probe per layer; `tick` is told the layers done.
        """
        self.fits = fits
        self.prices: list[float] = []  # nats per unit of energy
        everything = [None] * len(fits)
        for index, fit in enumerate(fits):
            bound = fit.bound(PRICED_SHARE)
            alone = [fit.above(bound) if i == index else None for i in range(len(fits))]
            lost = fit.lost(bound)
            self.prices.append(probe.measure(everything, alone).kld / lost if lost > 0 else 0.0)
            tick(index + 1)

    def keeping(self, share: float | int) -> tuple[HeadPredictor | None, ...]:
        """Return the predictors with which about `share` of all layers' heads are kept."""
        return keeping(self.fits, self.prices, share)

    def fewest(
        self,
        measure: Callable[[Sequence[HeadPredictor | None]], Measured],
        target: float,
        tick: Callable[[int], None],
    ) -> tuple[tuple[HeadPredictor | None, ...], Measured] | None:
        """Return the predictors that keep the smallest share whose measured nats hold `target`, if any does.

        Takes it that a smaller share loses more, and halves the steps; `tick` is told the measurements done.
        """
        found = None
        fails, holds = 0, HEAD_STEPS
        for done in range(1, HEAD_TRIES + 1):
            middle = (fails + holds) // 2
            heads = self.keeping(middle / HEAD_STEPS)
            measured = measure(heads)
            if measured.kld <= target:
                found, holds = (heads, measured), middle
            else:
                fails = middle
            tick(done)
        return found
