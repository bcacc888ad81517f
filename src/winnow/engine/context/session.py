"""Session: the cache of one conversation, kept from one request to the next.   (floor 5 · engine)"""

from collections.abc import Sequence
from typing import final

from winnow.engine.cache import KvCache
from winnow.engine.weights import Weights


@final
class Session:
    """The cache of one conversation, for runs whose prompts begin alike.

    Of a prompt, only the tokens after the longest beginning that the cache holds are read; what the cache
    holds beyond it is forgotten. An interrupted run leaves what it had read and said. Memory grows with the
    longest run so far, by doubling; one sequence at a time.
    """

    def __init__(self, weights: Weights) -> None:
        """Hold nothing yet."""
        self.weights = weights
        self.cache: KvCache | None = None
        self.tokens: list[int] = []  # the first cache.length of them are in the cache
        self.n_read = 0  # of the last prompt

    def begin(self, ids: Sequence[int], capacity: int) -> KvCache:
        """Return the cache with the beginning of `ids`, its last token aside, and room for `capacity`."""
        if self.cache is None:
            self.cache = KvCache(self.weights.config, capacity, self.weights.cache_dtype)
        elif self.cache.capacity < capacity:
            most = self.weights.config.n_positions
            self.cache.grow(max(capacity, min(2 * self.cache.capacity, most)))
        held = self.tokens[: self.cache.length]
        n_alike = next((i for i, (a, b) in enumerate(zip(ids, held, strict=False)) if a != b), None)
        n_alike = min(len(ids), len(held)) if n_alike is None else n_alike
        self.cache.length = min(n_alike, len(ids) - 1)  # the last token's logits are needed
        self.tokens = list(ids)
        self.n_read = len(ids) - self.cache.length
        return self.cache
