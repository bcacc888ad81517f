"""Reservoir: a uniform sample of the tokens that are no longer held.   (floor 4 · attention)

Every token draws a priority that belongs to its position and head; the sample is the tokens with the smallest
ones, so it does not depend on chunks, and two samples join into one.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from winnow.base.rng import keyed


def drawn_priorities(seed: int, block: int, n_heads: int, n: int, device: torch.device) -> Tensor:
    """Return the priorities [K, n] of the tokens of one block, equal for all entries of a batch."""
    return torch.from_numpy(keyed(seed, block).random((n_heads, n))).to(device)


@final
@dataclass
class Reservoir:
    """The sample; rows are one per batch entry and key-value head, R the tokens it holds at most."""

    key: Tensor  # [N, R, E]
    value: Tensor  # [N, R, E_v]
    priority: Tensor  # [N, R] float64, infinite where nothing is held
    label: Tensor  # [N, R] int64: the token's cluster

    @classmethod
    def empty(cls, n_rows: int, n: int, width: int, value_width: int, device: torch.device) -> "Reservoir":
        """Return a sample of nothing."""
        return cls(
            torch.zeros(n_rows, n, width, device=device),
            torch.zeros(n_rows, n, value_width, device=device),
            torch.full((n_rows, n), torch.inf, dtype=torch.float64, device=device),
            torch.full((n_rows, n), -1, dtype=torch.int64, device=device),
        )

    def relabel(self, where: Tensor, old: Tensor, new: Tensor) -> None:
        """In each row that `where` [N] names, move the tokens of cluster `old` to `new`."""
        moved = where[:, None] & (self.label == old[:, None])
        self.label.copy_(torch.where(moved, new[:, None], self.label))

    def add(self, keys: Tensor, values: Tensor, priority: Tensor, labels: Tensor) -> None:
        """Offer [N, P] tokens; those of infinite priority are no tokens."""
        n = self.priority.shape[1]
        priorities, at = torch.cat([self.priority, priority], 1).sort(dim=-1, stable=True)
        at = at[:, :n]
        rows = torch.arange(len(at), device=at.device)[:, None]
        self.key.copy_(torch.cat([self.key, keys], 1)[rows, at])
        self.value.copy_(torch.cat([self.value, values], 1)[rows, at])
        self.label.copy_(torch.cat([self.label, labels], 1)[rows, at])
        self.priority.copy_(priorities[:, :n])
