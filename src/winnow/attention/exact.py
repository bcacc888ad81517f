"""Exact: softmax attention, whose state is every key and value.   (floor 4 · attention)

    w(q, k) = exp(scale * q . k)          scale = 1 / sqrt(E) unless given

Memory grows with the positions: ``K * (E + E_v) * itemsize`` bytes each, kept in the dtype they came in,
which loses nothing; scores and sums are float32. All other kinds are judged against this one.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from winnow.attention.gate import (
    check_causal,
    check_queries,
    check_same_device,
    check_signed,
    check_sizes,
    checked_scale,
    exactly,
    gated_keys,
    grouped,
    signed,
    working_type,
)
from winnow.base.errors import UsageError

QUERY_ROWS = 256  # queries whose scores are in memory at once


@final
@dataclass(frozen=True)
class Softmax:
    """The kind that `softmax` makes."""

    label: ClassVar[str] = "softmax"
    is_convex: ClassVar[bool] = True

    def __call__(
        self,
        q: Float[Tensor, "B H T E"],
        k: Float[Tensor, "B K T_keys E"],
        v: Float[Tensor, "B K T_keys E_v"],
        *,
        causal: bool = True,
        scale: float | None = None,
        mask: Bool[Tensor, "B T_keys"] | None = None,
    ) -> Float[Tensor, "B H T E_v"]:
        """Return softmax attention; see `Kind`. Holds the scores of 256 queries at a time."""
        k, v = gated_keys(k, v, mask)
        check_queries(q, k.shape[0], k.shape[1], k.shape[3])
        check_same_device("q", q, "k", k)
        if causal:
            check_causal(q.shape[2], k.shape[2])
        factor = checked_scale(scale, 1 / math.sqrt(k.shape[3]))
        return _attend(q, k, v, mask, k.shape[2] - q.shape[2] if causal else None, factor)

    def start(
        self,
        batch: int,
        n_kv_heads: int,
        key_width: int,
        value_width: int,
        *,
        device: torch.device | str | None = None,
    ) -> "SoftmaxState":
        """Return an empty cache of keys and values."""
        check_sizes(batch, n_kv_heads, key_width, value_width)
        shape = (batch, n_kv_heads, 0)
        k, v = (torch.empty(*shape, width, device=device) for width in (key_width, value_width))
        return SoftmaxState(k, v, torch.empty(batch, 0, dtype=torch.bool, device=device))

    def load(self, tensors: dict[str, Tensor]) -> "SoftmaxState":
        """Return the cache that `SoftmaxState.save` gave."""
        check_signed(tensors, self.label, ("keys", "values", "mask"))
        return SoftmaxState(tensors["keys"], tensors["values"], tensors["mask"])


@final
class SoftmaxState:
    """All keys and values, in the dtype of the first ones, and where they are padding."""

    def __init__(self, keys: Tensor, values: Tensor, mask: Tensor) -> None:
        self._keys, self._values, self._mask = keys, values, mask

    @property
    def seen(self) -> int:
        """Positions appended, padding included."""
        return self._keys.shape[2]

    @property
    def n_bytes(self) -> int:
        """Bytes of keys, values and mask: they grow with `seen`."""
        return self._keys.nbytes + self._values.nbytes + self._mask.nbytes

    def append(
        self,
        k: Float[Tensor, "B K T E"],
        v: Float[Tensor, "B K T E_v"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> None:
        """Keep the next positions; copies what is there, O(seen)."""
        k, v = gated_keys(k, v, mask)
        check_same_sizes(k, v, self._keys.shape, self._values.shape)
        check_same_device("k", k, "the state", self._keys)
        if mask is None:
            mask = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
        if self.seen == 0:
            self._keys, self._values, self._mask = k.clone(), v.clone(), mask.clone()
        else:
            self._keys = torch.cat([self._keys, k.to(self._keys.dtype)], dim=2)
            self._values = torch.cat([self._values, v.to(self._values.dtype)], dim=2)
            self._mask = torch.cat([self._mask, mask], dim=1)

    def read(self, q: Float[Tensor, "B H T E"], scale: float | None = None) -> Float[Tensor, "B H T E_v"]:
        """Return the attention of each query over all positions; O(seen) for each."""
        check_begun(self.seen)
        batch, n_kv_heads, _, width = self._keys.shape
        check_queries(q, batch, n_kv_heads, width)
        check_same_device("q", q, "the state", self._keys)
        factor = checked_scale(scale, 1 / math.sqrt(width))
        return _attend(q, self._keys, self._values, self._mask, None, factor)

    def save(self) -> dict[str, Tensor]:
        """Return keys, values and mask."""
        kind = signed(Softmax.label)
        return {"keys": self._keys, "values": self._values, "mask": self._mask, "kind": kind}

    def merge(self, other: "SoftmaxState") -> None:
        """Take in the positions of `other` after this one's own; copies both, and `other` stays as it is."""
        if not isinstance(other, SoftmaxState):
            raise UsageError(f"merge received {type(other).__name__}; expected a state of the same kind.")
        check_same_sizes(other._keys, other._values, self._keys.shape, self._values.shape)
        check_same_device("the other state", other._keys, "this one", self._keys)
        mine = self if self.seen else other
        keys = [x._keys.to(mine._keys.dtype) for x in (self, other)]
        values = [x._values.to(mine._values.dtype) for x in (self, other)]
        self._mask = torch.cat([self._mask, other._mask], dim=1)
        self._keys, self._values = torch.cat(keys, dim=2), torch.cat(values, dim=2)


def softmax() -> Softmax:
    """Return exact softmax attention, the measure of all other kinds."""
    return Softmax()


def check_begun(seen: int) -> None:
    """Raise UsageError when nothing was appended yet."""
    if seen == 0:
        raise UsageError("The state is empty, there is nothing to read; append keys and values first.")


def check_same_sizes(k: Tensor, v: Tensor, keys: tuple[int, ...], values: tuple[int, ...]) -> None:
    """Raise UsageError unless batch, kv heads and widths of a chunk are those of the state."""
    found = (*k.shape[:2], k.shape[3], v.shape[3])
    wanted = (*keys[:2], keys[3], values[3])
    if found != wanted:
        raise UsageError(
            f"(batch, kv heads, key width, value width) are {found}, the state has {wanted}; start "
            "a new state."
        )


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, first: int | None, scale: float) -> Tensor:
    """Attend with query t at position `first` + t, or over all keys when `first` is None."""
    dtype, n_kv_heads = working_type(q, k, v), k.shape[1]
    with exactly(q.device):
        keys, values = k.to(dtype)[:, :, None], v.to(dtype)[:, :, None]
        outs = []
        for start in range(0, q.shape[2], QUERY_ROWS):
            rows = grouped(q[:, :, start : start + QUERY_ROWS].to(dtype) * scale, n_kv_heads)
            end = k.shape[2] if first is None else min(k.shape[2], first + start + rows.shape[3])
            scores = rows @ keys[..., :end, :].mT  # [B, K, G, T, T_keys]
            hidden = _hidden(mask, first, start, rows.shape[3], end, q.device)
            if hidden is not None:
                scores = scores.masked_fill(hidden, -math.inf)
                scores = scores.masked_fill(hidden.all(-1, keepdim=True), 0)  # no softmax of nothing
            weights = scores.softmax(-1)
            if hidden is not None:
                weights = weights.masked_fill(hidden, 0)
            outs.append((weights @ values[..., :end, :]).flatten(1, 2).to(v.dtype))
    return torch.cat(outs, dim=2)


def _hidden(
    mask: Tensor | None, first: int | None, start: int, n_rows: int, end: int, device: torch.device
) -> Tensor | None:
    """Return which keys are not seen by which rows, [B, 1, 1, T, T_keys] up to broadcasting."""
    hidden = None if mask is None else ~mask[:, None, None, None, :end]
    if first is None:
        return hidden
    at = first + start + torch.arange(n_rows, device=device)
    later = torch.arange(end, device=device) > at[:, None]
    return later if hidden is None else hidden | later
