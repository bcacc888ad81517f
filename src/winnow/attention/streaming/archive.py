"""Archive: the whole stream while it is short, for strict states.   (floor 4 · attention)"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass
class Archive:
    """The first tokens of a stream, all of them or, beyond its room, none that count."""

    key: Tensor  # [N, X, E]
    value: Tensor  # [N, X, E_v]
    is_real: Tensor  # [N, X]

    @classmethod
    def empty(cls, n_rows: int, n: int, width: int, value_width: int, device: torch.device) -> "Archive":
        """Return room for `n` tokens."""
        return cls(
            torch.zeros(n_rows, n, width, device=device),
            torch.zeros(n_rows, n, value_width, device=device),
            torch.zeros(n_rows, n, dtype=torch.bool, device=device),
        )

    def put(self, at: int, k: Tensor, v: Tensor, is_real: Tensor) -> None:
        """Write [N, P] tokens at `at`; what finds no room is left out."""
        n = max(0, min(k.shape[1], self.key.shape[1] - at))
        part = slice(at, at + n)
        self.key[:, part], self.value[:, part], self.is_real[:, part] = k[:, :n], v[:, :n], is_real[:, :n]

    def attend(self, q: Tensor, n_visible: Tensor) -> Tensor:
        """Return exact attention [N, G T, E_v] of scaled queries, the t-th seeing `n_visible[t]` tokens."""
        n = int(n_visible.max())
        logits = (q @ self.key[:, :n].mT).view(len(q), -1, len(n_visible), n)
        sees = torch.arange(n, device=q.device) < n_visible[:, None]  # [T, n]
        hidden = ~(sees & self.is_real[:, None, :n])  # [N, T, n]
        weights = logits.masked_fill(hidden[:, None], -torch.inf).softmax(-1).nan_to_num()
        return weights.flatten(1, 2) @ self.value[:, :n]
