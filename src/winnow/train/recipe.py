"""Recipes: everything that a training run fixes before its first step.   (floor 5 · train)"""

import math
from dataclasses import dataclass

from winnow.base.errors import UsageError

SMALLEST_VOCABULARY = 256 + 4
LARGEST_VOCABULARY = 2**16
ARCHITECTURES = ("opt", "llama")
POSITIVE = (
    "width",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "n_neurons",
    "n_positions",
    "short_tokens",
    "long_every",
    "n_steps",
)


@dataclass(frozen=True)
class Recipe:
    """A small language model and the run that trains it.

    Every batch holds `batch_tokens` tokens: rows of `short_tokens` positions, and at every
    `long_every`-th step rows of `n_positions`, so that all positions are trained and the quadratic
    part of attention stays cheap. Lengths are in tokens.
    """

    name: str = "pico"
    architecture: str = "opt"
    vocab_size: int = 4096
    width: int = 256
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 4
    n_neurons: int = 1024
    n_positions: int = 2048
    short_tokens: int = 512
    long_every: int = 5
    batch_tokens: int = 8192
    n_steps: int = 5400
    peak_rate: float = 3e-3
    warmup_steps: int = 200
    weight_decay: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together; the run would fail on them hours later or never say so."""
        if self.architecture not in ARCHITECTURES:
            raise UsageError(f"architecture is {self.architecture!r}; expected one of {ARCHITECTURES}.")
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1. Change the recipe.")
        if not SMALLEST_VOCABULARY <= self.vocab_size <= LARGEST_VOCABULARY:
            raise UsageError(
                f"vocab_size is {self.vocab_size}; expected {SMALLEST_VOCABULARY} (every byte and 4 special "
                f"tokens) to {LARGEST_VOCABULARY} (ids are stored in 16 bits). Change the recipe."
            )
        if self.width % self.n_heads:
            raise UsageError(
                f"width {self.width} is no multiple of n_heads {self.n_heads}. Change the recipe."
            )
        if self.n_heads % self.n_kv_heads:
            raise UsageError(
                f"n_heads {self.n_heads} is no multiple of n_kv_heads {self.n_kv_heads}. Change the recipe."
            )
        if self.architecture == "opt" and self.n_kv_heads != self.n_heads:
            raise UsageError(f"n_kv_heads is {self.n_kv_heads}; OPT has one per head, {self.n_heads}.")
        for name in ("short_tokens", "n_positions"):
            if self.batch_tokens < 1 or self.batch_tokens % getattr(self, name):
                raise UsageError(
                    f"batch_tokens {self.batch_tokens} is no multiple of {name} {getattr(self, name)}. "
                    "Change the recipe."
                )

    @property
    def n_tokens(self) -> int:
        """Tokens seen by the whole run."""
        return self.n_steps * self.batch_tokens

    def row_tokens(self, step: int) -> int:
        """Row length at `step`, counted from zero."""
        is_long = step % self.long_every == self.long_every - 1
        return self.n_positions if is_long else self.short_tokens

    def rate(self, step: int) -> float:
        """Learning rate at `step`: linear warm-up, then a cosine down to 2 % of the peak."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.n_steps - self.warmup_steps, 1)
        return self.peak_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


PICO = Recipe()
# Three matrices per neuron instead of two: as many neurons as give the MLPs pico's bytes, rounded up to 256.
PICO_LLAMA = Recipe(name="pico-llama", architecture="llama", n_kv_heads=2, n_neurons=768, n_steps=1600)
RECIPES = {recipe.name: recipe for recipe in (PICO, PICO_LLAMA)}
