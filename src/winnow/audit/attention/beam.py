"""Beam: readings of a text that live side by side while rows leave a doubt.   (floor 5 · audit)"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

BEAM = 8
CHILDREN = 4  # of one prefix that are kept
EXPLAINS = 1.5  # largest deviation of a right token's row, in slacks: 1 and what arithmetic adds
SURE = 3.0  # a prefix is dropped when its row's error is this many times that of one that explains its row


@final
@dataclass(frozen=True, eq=False)
class Decoded:
    """Tokens read from maps, and per token how well they explain what was shown.

    `errors` are root mean squares in slacks (what the rounding of the maps allows); `seconds` those of the
    second best token after the same beginning; `is_explained` says that no entry deviates by more than
    rounding and arithmetic do.
    """

    tokens: Int64[Tensor, " T"]
    errors: Float[Tensor, " T"]
    seconds: Float[Tensor, " T"]
    is_explained: Bool[Tensor, " T"]

    @property
    def margins(self) -> Float[Tensor, " T"]:
        """Second best over best error per token: 1 is a tie, thousands leave no doubt."""
        return self.seconds / self.errors.clamp_min(1e-9)

    @property
    def is_whole(self) -> bool:
        """Whether every row is explained and no token has an equal."""
        return bool(self.is_explained.all()) and bool((self.margins > 1.0 + 1e-6).all())


@final
@dataclass(frozen=True, eq=False)
class Prefix:
    """A beginning: its tokens, what later rows need of them, and per token error, deviation, second error."""

    tokens: tuple[int, ...]
    state: Tensor  # keys of the tokens, where the first layer is read
    errors: tuple[float, ...]
    worsts: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def cost(self) -> float:
        """Squared errors, each by the length of its row."""
        return sum(error**2 * (place + 1) for place, error in enumerate(self.errors))


@final
@dataclass(frozen=True, eq=False)
class Child:
    """A prefix, a token after it, and how well that explains the row."""

    parent: Prefix
    token: int
    error: float
    worst: float
    second: float

    @property
    def cost(self) -> float:
        """That of the longer prefix."""
        return self.parent.cost + self.error**2 * (len(self.parent.errors) + 1)

    def grown(self, state: Tensor) -> Prefix:
        """Return the longer prefix with the `state` of its last token appended."""
        parent = self.parent
        return Prefix(
            (*parent.tokens, self.token),
            torch.cat([parent.state, state]),
            (*parent.errors, self.error),
            (*parent.worsts, self.worst),
            (*parent.seconds, self.second),
        )


def children(parent: Prefix, candidates: Int64[Tensor, " N"], errors: Tensor, worsts: Tensor) -> list[Child]:
    """Return the best few continuations of `parent`, each with the error of the best other one."""
    best = errors.topk(min(CHILDREN, len(errors)), largest=False).indices
    found = []
    for rank, place in enumerate(best.tolist()):
        other = float(errors[best[1 if rank == 0 else 0]]) if len(best) > 1 else torch.inf
        found.append(Child(parent, int(candidates[place]), float(errors[place]), float(worsts[place]), other))
    return found


def pruned(found: Sequence[Child], most: int) -> list[Child]:
    """Keep the cheapest; where one explains its row, only those that do so about as well."""
    ordered = sorted(found, key=lambda child: child.cost)
    explained = [child.error for child in ordered if child.worst <= EXPLAINS]
    if explained:
        largest = max(SURE * min(explained), 1.0)
        ordered = [child for child in ordered if child.error <= largest]
    return ordered[:most]


def reading(prefixes: Sequence[Prefix]) -> Decoded:
    """Return the cheapest prefix; where another whole reading survives, tokens in dispute are near ties."""
    best = prefixes[0]
    seconds = list(best.seconds)
    for rival in prefixes[1:]:
        for place, (token, other) in enumerate(zip(best.tokens, rival.tokens, strict=True)):
            if token != other:
                seconds[place] = min(seconds[place], rival.errors[place])
    return Decoded(
        torch.tensor(best.tokens),
        torch.tensor(best.errors),
        torch.tensor(seconds),
        torch.tensor(best.worsts) <= EXPLAINS,
    )
