"""Held: the tokens that stay exact, and which of them stay longest.   (floor 4 · attention)

The window's buffer takes tokens in order. A block that leaves it gives the first real tokens to the sinks;
the others compete with the heavy keys held so far, and the lightest go. A key is heavy by the larger of two
numbers, both in nats: how far it may move a logit, its distance to the nearest centre times the running norm
of the queries over sqrt(E); and the log of its share of attention while it was in the window, relative to an
equal share.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass
class Window:
    """The buffer of the latest tokens, oldest first; rows are one per batch entry and key-value head."""

    key: Tensor  # [N, W, E]
    value: Tensor  # [N, W, E_v]
    is_real: Tensor  # [N, W]
    lift_sum: Tensor  # [N, W]: shares of attention relative to equal ones, summed over queries
    lift_n: Tensor  # [N, W] int64: the queries that could see the token

    @classmethod
    def empty(cls, n_rows: int, n: int, width: int, value_width: int, device: torch.device) -> "Window":
        """Return a buffer for `n` tokens."""
        return cls(
            torch.zeros(n_rows, n, width, device=device),
            torch.zeros(n_rows, n, value_width, device=device),
            torch.zeros(n_rows, n, dtype=torch.bool, device=device),
            torch.zeros(n_rows, n, device=device),
            torch.zeros(n_rows, n, dtype=torch.int64, device=device),
        )

    def put(self, at: int, k: Tensor, v: Tensor, is_real: Tensor) -> None:
        """Write [N, P] tokens at `at`, nobody having seen them yet."""
        part = slice(at, at + k.shape[1])
        self.key[:, part], self.value[:, part], self.is_real[:, part] = k, v, is_real
        self.lift_sum[:, part], self.lift_n[:, part] = 0, 0

    def observe(self, shares: Tensor, seen_by: Tensor) -> None:
        """Add what queries gave to the first tokens: `shares` [N, F] summed, `seen_by` [N, F] queries."""
        part = slice(0, shares.shape[1])
        self.lift_sum[:, part] += shares
        self.lift_n[:, part] += seen_by

    def drop(self, n: int) -> None:
        """Forget the oldest `n` tokens; the others move to the front."""
        for held in (self.key, self.value, self.is_real, self.lift_sum, self.lift_n):
            held[:, :-n] = held[:, n:].clone()

    def lift(self, n: int) -> Tensor:
        """Return the log of the mean relative share of the oldest `n` tokens, -inf for those nobody saw."""
        return (self.lift_sum[:, :n] / self.lift_n[:, :n].clamp(min=1)).log()


@final
@dataclass
class Kept:
    """Old tokens that stay exact: the sinks in the first slots, then the heavy keys."""

    key: Tensor  # [N, A, E]
    value: Tensor  # [N, A, E_v]
    is_real: Tensor  # [N, A]
    lift: Tensor  # [N, A]
    priority: Tensor  # [N, A] float64: what the reservoir will sample by
    n_sunk: Tensor  # [N] int64

    @classmethod
    def empty(cls, n_rows: int, n: int, width: int, value_width: int, device: torch.device) -> "Kept":
        """Return `n` free slots."""
        return cls(
            torch.zeros(n_rows, n, width, device=device),
            torch.zeros(n_rows, n, value_width, device=device),
            torch.zeros(n_rows, n, dtype=torch.bool, device=device),
            torch.full((n_rows, n), -torch.inf, device=device),
            torch.full((n_rows, n), torch.inf, dtype=torch.float64, device=device),
            torch.zeros(n_rows, dtype=torch.int64, device=device),
        )

    def sink(self, tokens: "Tokens", n_sinks: int) -> None:
        """Move the first real tokens of the stream from `tokens` to the sinks."""
        if n_sinks == 0 or bool((self.n_sunk >= n_sinks).all()):
            return
        rank = self.n_sunk[:, None] + tokens.is_real.cumsum(-1) - 1
        slots = torch.arange(n_sinks, device=rank.device)[:, None]
        goes = (rank[:, None] == slots) & tokens.is_real[:, None]  # [N, sinks, P]
        self.key[:, :n_sinks] += goes.float() @ tokens.key
        self.value[:, :n_sinks] += goes.float() @ tokens.value
        self.is_real[:, :n_sinks] |= goes.any(-1)
        self.n_sunk += goes.any(-1).sum(-1)
        tokens.is_real = tokens.is_real & ~goes.any(1)

    def compete(self, tokens: "Tokens", n_sinks: int, score: Tensor) -> "Tokens":
        """Keep the heaviest of heavy keys and `tokens` by `score` [N, heavy + P]; return the P lightest."""
        everyone = self.heavy(n_sinks).joined(tokens)
        n = self.key.shape[1] - n_sinks
        order = score.masked_fill(~everyone.is_real, -torch.inf).sort(dim=-1, descending=True, stable=True)[1]
        best = everyone.picked(order[:, :n])
        self.key[:, n_sinks:], self.value[:, n_sinks:] = best.key, best.value
        self.is_real[:, n_sinks:] = best.is_real
        self.lift[:, n_sinks:], self.priority[:, n_sinks:] = best.lift, best.priority
        return everyone.picked(order[:, n:])

    def heavy(self, n_sinks: int) -> "Tokens":
        """Return the heavy keys."""
        parts = (self.key, self.value, self.is_real, self.lift, self.priority)
        return Tokens(*(part[:, n_sinks:] for part in parts))


@final
@dataclass
class Tokens:
    """Tokens on their way out of the window."""

    key: Tensor  # [N, P, E]
    value: Tensor  # [N, P, E_v]
    is_real: Tensor  # [N, P]
    lift: Tensor  # [N, P]
    priority: Tensor  # [N, P] float64

    def joined(self, other: "Tokens") -> "Tokens":
        """Return both, these first."""
        return Tokens(*(torch.cat([a, b], 1) for a, b in zip(self._each(), other._each(), strict=True)))

    def picked(self, at: Tensor) -> "Tokens":
        """Return the tokens at `at` [N, M]."""
        rows = torch.arange(len(at), device=at.device)[:, None]
        return Tokens(*(part[rows, at] for part in self._each()))

    def sampling(self) -> Tensor:
        """Return the priorities, infinite for what is no token."""
        return self.priority.masked_fill(~self.is_real, torch.inf)

    def _each(self) -> tuple[Tensor, ...]:
        return self.key, self.value, self.is_real, self.lift, self.priority
