"""Randomness: always passed, never global.   (floor 0 · base)

Two kinds. A `generator` is a stream: what it yields depends on all that was drawn before.
`keyed` is a counter: what it yields depends on (seed, counter) alone, so a run that was resumed,
batched or reordered draws the same numbers.
"""

import numpy as np
import torch

from winnow.base.errors import UsageError

SEED_LIMIT = 2**63  # torch maps larger seeds onto negative ones


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new stream on `device`; equal seeds give equal streams, the global one is not touched."""
    return torch.Generator(device).manual_seed(_checked(seed, "seed"))


def keyed(seed: int, counter: int) -> np.random.Generator:
    """Return the numbers that belong to (seed, counter): Philox, whose key is the pair itself.

    Different pairs give independent numbers; making one costs microseconds and keeps no state.
    """
    key = [_checked(seed, "seed"), _checked(counter, "counter")]
    return np.random.Generator(np.random.Philox(key=key))


def _checked(value: int, name: str) -> int:
    if not 0 <= value < SEED_LIMIT:
        raise UsageError(f"{name} is {value}; expected 0 <= {name} < 2**63. Give a smaller non-negative one.")
    return value
