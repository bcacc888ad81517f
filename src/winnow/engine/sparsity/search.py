"""Search: the settings of all layers that read the least within a budget of nats.   (floor 5 · engine)"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from winnow.engine.sparsity.frontier import Choice

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
