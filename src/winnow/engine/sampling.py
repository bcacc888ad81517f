"""Sampling: from logits to one token.   (floor 5 · engine)

The random number of a step is drawn by (seed, step) alone: what else runs changes no token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from winnow.base.errors import UsageError
from winnow.base.rng import keyed


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is picked. Temperature 0 takes the likeliest; 0 and 1 switch `top_k` and `top_p` off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values outside their ranges; NaN is outside every range."""
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_k", self.top_k, 0, 2**31)
        _within("top_p", self.top_p, 1e-9, 1.0)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        _within("seed", self.seed, 0, 2**63 - 1)
        for token, bias in self.logit_bias.items():
            _within(f"logit_bias[{token}]", bias, -100.0, 100.0)


def _within(name: str, value: int | float, low: int | float, high: int | float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} is {value}; expected {low:g} to {high:g}.")


def pick(logits: np.ndarray, options: SamplingOptions, step: int, history: Sequence[int]) -> int:
    """Return the token that `options` picks from float32 `logits` [V] at `step`; ties go to the lower id.

    `history` holds the ids so far, which the repetition penalty makes less likely.
    """
    if options.temperature == 0:
        return int(_adjusted(logits, options, history).argmax())
    tokens, shares = candidates(logits, options, history)
    ladder = np.cumsum(shares)
    draw = keyed(options.seed, step).random()
    return int(tokens[min(np.searchsorted(ladder, draw * ladder[-1], side="right"), len(tokens) - 1)])


def candidates(
    logits: np.ndarray, options: SamplingOptions, history: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens that may be drawn, the likeliest first, and their shares, which sum to 1.

    In this order, which is that of transformers: repetition penalty, bias, temperature, the `top_k`
    likeliest, of those the fewest whose mass reaches `top_p`, of those the ones that are at least `min_p`
    times as likely as the likeliest. The temperature is above 0.
    """
    adjusted = _adjusted(logits, options, history)
    shifted = (adjusted - adjusted.max()).astype(np.float64) / options.temperature
    weights = np.exp(shifted)
    order = np.argsort(-weights, kind="stable")
    tokens = order[_kept(weights[order], options)]
    return tokens, weights[tokens] / weights[tokens].sum()


def _adjusted(logits: np.ndarray, options: SamplingOptions, history: Sequence[int]) -> np.ndarray:
    if options.repetition_penalty == 1 and not options.logit_bias:
        return logits
    adjusted = logits.copy()
    if options.repetition_penalty != 1 and len(history):
        seen = np.unique(np.asarray(history))
        score = adjusted[seen]
        penalty = options.repetition_penalty
        adjusted[seen] = np.where(score > 0, score / penalty, score * penalty)
    for token, bias in options.logit_bias.items():
        adjusted[token] += bias
    return adjusted


def _kept(weights: np.ndarray, options: SamplingOptions) -> np.ndarray:
    """Return which of the descending `weights` stay; the likeliest always does."""
    kept = np.ones(len(weights), dtype=bool)
    if options.top_k:
        kept[options.top_k :] = False
    mass = np.cumsum(weights * kept)
    kept &= mass - weights < options.top_p * mass[-1]
    kept &= weights >= options.min_p * weights[0]
    kept[0] = True
    return kept
