"""Fixed state: any attention by features, in memory that does not grow.   (floor 4 · attention)

    S = mean over the keys of  keys(k) [v, 1]^T        R (E_v + 1) floats for R features
    out = numerator / denominator,   [numerator, denominator] = queries(scale * q)^T S

Means rather than sums: they stay of the size of one token, and an update moves them by its share. A state is
float32 whatever the model's dtype (float64 for float64). Within a chunk the weights are computed pair by
pair; a chunk sees what came before it through S alone. Whole sequences, chunks and single tokens thus agree
up to rounding.

Where the denominator is not positive, which weights that are never negative reach only at zero, the query
gets the plain mean of the values it sees. Estimated weights can come close to zero from above too; then
outputs are large and mean nothing: kinds that are not `is_convex` promise an error only where the weights
have a clear sum.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from winnow.attention.exact import check_begun
from winnow.attention.features import FeatureMap
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
from winnow.base.errors import ResourceError, UsageError
from winnow.base.room import free_memory_bytes, quantity

CHUNK_TOKENS = (
    64  # positions whose features are in memory at once; fixed, so that results do not depend on it
)
SMALLEST = 1e-30  # a denominator of this size or less counts as none


@final
@dataclass(frozen=True)
class FeatureAttention:
    """Attention whose weight is an inner product of features."""

    features: FeatureMap

    @property
    def label(self) -> str:
        """The feature map's own."""
        return self.features.label

    @property
    def is_convex(self) -> bool:
        """Whether no weight is ever negative."""
        return self.features.is_convex

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
        """Return the attention of each query; see `Kind`. O(T * R * E_v) operations, one state of memory."""
        k, v = gated_keys(k, v, mask)
        check_queries(q, k.shape[0], k.shape[1], k.shape[3])
        check_same_device("q", q, "k", k)
        factor = checked_scale(scale, self.features.default_scale(k.shape[3]))
        state = self.start(k.shape[0], k.shape[1], k.shape[3], v.shape[3], device=k.device)
        if causal:
            check_causal(q.shape[2], k.shape[2])
        first = k.shape[2] - q.shape[2] if causal else k.shape[2]  # keys before the first query
        state.absorb(k[:, :, :first], v[:, :, :first], _part(mask, 0, first))
        if not causal:
            return state.answer(q, factor)
        return state.follow(q, k[:, :, first:], v[:, :, first:], _part(mask, first, k.shape[2]), factor)

    def start(
        self,
        batch: int,
        n_kv_heads: int,
        key_width: int,
        value_width: int,
        *,
        device: torch.device | str | None = None,
    ) -> "FixedState":
        """Return an empty state; raises ResourceError when it does not fit into memory."""
        check_sizes(batch, n_kv_heads, key_width, value_width)
        n_features = self.features.n_features(key_width)
        needed, free = 12 * batch * n_kv_heads * n_features * (value_width + 1), _free_bytes(device)
        if free is not None and needed > free:
            raise ResourceError(
                f"{self.label} has {n_features} features at head width {key_width}, which takes "
                f"{quantity(needed)}, {quantity(free)} are free; take a smaller degree or poly_sketch."
            )
        sums = torch.zeros(batch, n_kv_heads, n_features, value_width + 1, device=device)
        centre = torch.zeros(batch, n_kv_heads, value_width, device=device)
        counts = torch.zeros(batch, dtype=torch.int64, device=device)
        return FixedState(self.features, key_width, sums, centre, counts)

    def load(self, tensors: dict[str, Tensor]) -> "FixedState":
        """Return the state that `FixedState.save` gave."""
        check_signed(tensors, self.label, ("sums", "centre", "counts", "sizes", "dtype"))
        seen, key_width = tensors["sizes"].tolist()
        sums, centre = tensors["sums"], tensors["centre"]
        wanted = (*centre.shape[:2], self.features.n_features(key_width), centre.shape[2] + 1)
        if tuple(sums.shape) != wanted:
            raise UsageError(f"The saved sums are {tuple(sums.shape)}; expected {wanted}. Save it again.")
        state = FixedState(self.features, key_width, sums, centre, tensors["counts"])
        state.seen, state.dtype = seen, tensors["dtype"].dtype
        return state


@final
class FixedState:
    """The means of a `FeatureAttention`; replaced at each step, never changed in place, so gradients flow."""

    def __init__(
        self,
        features: FeatureMap,
        key_width: int,
        sums: Float[Tensor, "B K R columns"],
        centre: Float[Tensor, "B K E_v"],
        counts: Int64[Tensor, " B"],
    ) -> None:
        self.seen = 0  # positions appended, padding included
        self.dtype = torch.float32  # of the values, and so of what is read
        self._features, self._key_width = features, key_width
        self._sums, self._centre, self._counts = sums, centre, counts

    @property
    def n_bytes(self) -> int:
        """Bytes of means and counts: ``4 R (E_v + 1) + 4 E_v`` per kv head, and 8, per sequence."""
        return self._sums.nbytes + self._centre.nbytes + self._counts.nbytes

    def append(
        self,
        k: Float[Tensor, "B K T E"],
        v: Float[Tensor, "B K T E_v"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> None:
        """Take in the next positions, O(T * R * E_v)."""
        self.absorb(*self._gated(k, v, mask), mask)

    def read(self, q: Float[Tensor, "B H T E"], scale: float | None = None) -> Float[Tensor, "B H T E_v"]:
        """Return the attention of each query over all positions seen so far, O(T * R * E_v)."""
        check_begun(self.seen)
        check_queries(q, *self._sizes[:3])
        check_same_device("q", q, "the state", self._sums)
        return self.answer(q, checked_scale(scale, self._features.default_scale(self._key_width)))

    def extend(
        self,
        q: Float[Tensor, "B H T E"],
        k: Float[Tensor, "B K T E"],
        v: Float[Tensor, "B K T E_v"],
        mask: Bool[Tensor, "B T"] | None = None,
        scale: float | None = None,
    ) -> Float[Tensor, "B H T E_v"]:
        """Take in the next positions and return for each what causal attention gives there."""
        k, v = self._gated(k, v, mask)
        check_queries(q, *self._sizes[:3])
        check_same_device("q", q, "the state", self._sums)
        if q.shape[2] != k.shape[2]:
            raise UsageError(
                f"extend received {q.shape[2]} queries, {k.shape[2]} keys; expected equal counts."
            )
        factor = checked_scale(scale, self._features.default_scale(self._key_width))
        return self.follow(q, k, v, mask, factor)

    def save(self) -> dict[str, Tensor]:
        """Return means, counts, sizes and, as an empty tensor, the dtype of the values."""
        return {
            "sums": self._sums,
            "centre": self._centre,
            "counts": self._counts,
            "sizes": torch.tensor([self.seen, self._key_width]),
            "dtype": torch.empty(0, dtype=self.dtype),
            "kind": signed(self._features.label),
        }

    def merge(self, other: "FixedState") -> None:
        """Take in the positions of `other`, which stays as it is; their order does not matter."""
        if not isinstance(other, FixedState) or other._features.label != self._features.label:
            found = other._features.label if isinstance(other, FixedState) else type(other).__name__
            raise UsageError(f"merge received {found}; expected a state of {self._features.label}.")
        if other._sizes != self._sizes:
            raise UsageError(
                f"merge received a state of sizes {other._sizes}; expected {self._sizes}, as this one."
            )
        check_same_device("the other state", other._sums, "this one", self._sums)
        total = self._counts + other._counts
        share = (other._counts / total.clamp(min=1))[:, None, None].to(self._sums.dtype)
        self.dtype = (self if self.seen else other).dtype
        self._sums = self._sums + (other._sums - self._sums) * share[..., None]
        self._centre = self._centre + (other._centre - self._centre) * share
        self._counts, self.seen = total, self.seen + other.seen

    def absorb(self, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        """Append what has passed the gate, 64 positions at a time."""
        for at in range(0, k.shape[2], CHUNK_TOKENS):
            part = slice(at, at + CHUNK_TOKENS)
            self._take(*self._working(k[:, :, part], v[:, :, part]), _part(mask, at, at + CHUNK_TOKENS))
            self.dtype = v.dtype
        self.seen += k.shape[2]

    def answer(self, q: Tensor, factor: float) -> Tensor:
        """Read for queries that have passed the gate, 64 at a time."""
        outs = []
        with exactly(q.device):
            for at in range(0, q.shape[2], CHUNK_TOKENS):
                rows = grouped(q[:, :, at : at + CHUNK_TOKENS].to(self._sums.dtype) * factor, self._sizes[1])
                found = self._features.queries(rows) @ self._sums[:, :, None]
                outs.append(_ratio(found[..., :-1], found[..., -1:], self._centre[:, :, None, None]))
        return torch.cat(outs, dim=3).flatten(1, 2).to(self.dtype)

    def follow(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, factor: float) -> Tensor:
        """Extend by what has passed the gate, 64 positions at a time."""
        outs = []
        for at in range(0, k.shape[2], CHUNK_TOKENS):
            part = slice(at, at + CHUNK_TOKENS)
            chunk = k[:, :, part], v[:, :, part], _part(mask, at, at + CHUNK_TOKENS)
            outs.append(self._step(q[:, :, part], *chunk, factor))
        return torch.cat(outs, dim=2)

    def _gated(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        k, v = gated_keys(k, v, mask)
        sizes, wanted = (*k.shape[:2], k.shape[3], v.shape[3]), self._sizes
        if sizes != wanted:
            raise UsageError(
                f"(batch, kv heads, key width, value width) are {sizes}, the state has {wanted}; start a new "
                "state."
            )
        check_same_device("k", k, "the state", self._sums)
        return k, v

    def _step(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, factor: float) -> Tensor:
        """Append one chunk of at most 64 positions, and read for each of its queries what it may see."""
        keys, values = self._working(k, v)
        rows = grouped(q.to(keys.dtype) * factor, keys.shape[1])  # [B, K, G, T, E]
        with exactly(q.device):
            before = self._counts.to(keys.dtype)[:, None, None]  # [B, 1, 1]
            ones = _real(keys, mask)  # [B, 1, T, 1]
            reach = before[..., None] + ones.cumsum(2)  # [B, 1, T, 1]: positions seen by each query
            pairs = self._features.weights(rows, keys[:, :, None]).tril()
            found = before[..., None, None] * (self._features.queries(rows) @ self._sums[:, :, None])
            found = (found + pairs @ _with_ones(values, ones)[:, :, None]) / reach.clamp(min=1)[:, :, None]
            centre = (before[..., None] * self._centre[:, :, None] + values.cumsum(2)) / reach.clamp(min=1)
            out = _ratio(found[..., :-1], found[..., -1:], centre[:, :, None])
        self._take(keys, values, mask)
        self.seen, self.dtype = self.seen + k.shape[2], v.dtype
        return out.flatten(1, 2).to(v.dtype)

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """Batch, kv heads, key width, value width."""
        return self._sums.shape[0], self._sums.shape[1], self._key_width, self._centre.shape[2]

    def _working(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chunk in the type of the state, which the first chunk of float64 makes float64."""
        dtype = working_type(k, v) if self.seen == 0 else self._sums.dtype
        if dtype != self._sums.dtype:
            self._sums, self._centre = self._sums.to(dtype), self._centre.to(dtype)
        return k.to(dtype), v.to(dtype)

    def _take(self, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        """Move the means by the share of one chunk."""
        with exactly(k.device):
            ones = _real(k, mask)
            fresh = ones.sum((1, 2, 3))  # [B] real positions of the chunk
            total = self._counts + fresh.long()
            share = (1 / total.clamp(min=1)).to(k.dtype)[:, None, None]
            sums = self._features.keys(k).mT @ _with_ones(v, ones)
            own = fresh[:, None, None]
            self._sums = self._sums + (sums - own[..., None] * self._sums) * share[..., None]
            self._centre = self._centre + (v.sum(2) - own * self._centre) * share
            self._counts = total


def _free_bytes(device: torch.device | str | None) -> int | None:
    """Return the memory that a state on `device` may still take, None where nobody says."""
    found = torch.device("cpu" if device is None else device)
    if found.type == "cuda":  # what torch holds and does not use is free too
        held = torch.cuda.memory_reserved(found) - torch.cuda.memory_allocated(found)
        return torch.cuda.mem_get_info(found)[0] + held
    return free_memory_bytes() if found.type == "cpu" else None


def _part(mask: Tensor | None, start: int, end: int) -> Tensor | None:
    return None if mask is None else mask[:, start:end]


def _real(k: Tensor, mask: Tensor | None) -> Tensor:
    """Return 1 at real positions and 0 at padding, [B, 1, T, 1]."""
    if mask is None:
        return k.new_ones(k.shape[0], 1, k.shape[2], 1)
    return mask[:, None, :, None].to(k.dtype)


def _with_ones(v: Tensor, ones: Tensor) -> Tensor:
    """Return the values, zero at padding, and a last column that counts real positions."""
    return torch.cat([v, ones.expand(-1, v.shape[1], -1, -1)], dim=-1)


def _ratio(numerator: Tensor, denominator: Tensor, centre: Tensor) -> Tensor:
    """Return the quotient, and the mean of the values where there is no positive denominator."""
    is_there = denominator > SMALLEST
    return torch.where(is_there, numerator / torch.where(is_there, denominator, 1), centre)
