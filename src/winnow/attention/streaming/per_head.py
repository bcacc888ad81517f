"""Per head: a stream whose kv heads have budgets of their own.   (floor 4 · attention)

Heads of equal options share one state, so its tensors stay whole; what each head reads is what it would read
alone. Costs a read per different budget.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.attention.streaming.kind import Streaming, sizes_of
from winnow.attention.streaming.options import StreamingOptions
from winnow.attention.streaming.state import Sizes, StreamingState
from winnow.base.errors import UsageError


@final
@dataclass(frozen=True)
class PerHead:
    """Streaming attention with one `StreamingOptions` per kv head."""

    options: tuple[StreamingOptions, ...]

    @cached_property
    def groups(self) -> dict[StreamingOptions, list[int]]:
        """Return the kv heads of each budget."""
        found: dict[StreamingOptions, list[int]] = {}
        for head, options in enumerate(self.options):
            found.setdefault(options, []).append(head)
        return found

    def __call__(
        self,
        q: Float[Tensor, "B H T E"],
        k: Float[Tensor, "B K T_k E"],
        v: Float[Tensor, "B K T_k E_v"],
        *,
        causal: bool = True,
        scale: float | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "B H T E_v"]:
        """Return the attention of `q` over `k`, `v`, each kv head by its own budget; see `Streaming`."""
        state = self.start(*sizes_of(k, v), device=k.device)
        if causal:
            return state.step(q, k, v, mask, scale)
        state.append(k, v, mask)
        return state.read(q, scale).to(v.dtype)

    def start(
        self,
        batch: int,
        n_kv_heads: int,
        key_width: int,
        value_width: int,
        *,
        device: torch.device | str | None = None,
    ) -> "PerHeadState":
        """Return the state of `batch` streams; raises UsageError unless there are options for each head."""
        if n_kv_heads != len(self.options):
            raise UsageError(
                f"The keys have {n_kv_heads} heads, there are options for {len(self.options)}; give one per "
                "kv head."
            )
        sizes = (batch, n_kv_heads, key_width, value_width)
        parts = [
            Streaming(options).start(batch, len(heads), key_width, value_width, device=device)
            for options, heads in self.groups.items()
        ]
        return PerHeadState(sizes, list(self.groups.values()), parts)

    def load(self, tensors: dict[str, Tensor]) -> "PerHeadState":
        """Return the state that `save` took the tensors of; raises UsageError if it had other options."""
        heads = torch.tensor([head for each in self.groups.values() for head in each])
        if "heads" not in tensors or not torch.equal(tensors["heads"].cpu(), heads):
            raise UsageError(
                "The tensors are of no state whose heads have these budgets; load them by the options of "
                "the one that was saved."
            )
        parts = []
        for at, options in enumerate(self.groups):
            own = {name.removeprefix(f"{at}."): x for name, x in tensors.items() if name.startswith(f"{at}.")}
            parts.append(Streaming(options).load(own))
        batch, _, width, value_width = parts[0].sizes
        sizes = (batch, len(self.options), width, value_width)
        return PerHeadState(sizes, list(self.groups.values()), parts)


@final
class PerHeadState:
    """One `StreamingState` per budget, fed and read together."""

    def __init__(self, sizes: Sizes, heads: list[list[int]], parts: list[StreamingState]) -> None:
        self.sizes, self.parts = sizes, parts
        device = parts[0].device
        self._heads = [torch.tensor(each).to(device) for each in heads]
        self._back = torch.cat(self._heads).argsort()

    @property
    def seen(self) -> int:
        """Tokens of each stream, masked ones included."""
        return self.parts[0].seen

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors: constant from the first token to the last."""
        return sum(part.n_bytes for part in self.parts)

    def append(
        self, k: Float[Tensor, "B K T E"], v: Float[Tensor, "B K T E_v"], mask: Tensor | None = None
    ) -> None:
        """Take in T tokens that no query of theirs reads; see `StreamingState.append`."""
        for heads, part in zip(self._heads, self.parts, strict=True):
            part.append(k[:, heads], v[:, heads], mask)

    def step(
        self,
        q: Float[Tensor, "B H T E"],
        k: Float[Tensor, "B K T E"],
        v: Float[Tensor, "B K T E_v"],
        mask: Tensor | None = None,
        scale: float | None = None,
    ) -> Float[Tensor, "B H T E_v"]:
        """Take in T tokens and return what their queries read; see `StreamingState.step`."""
        outs = [
            part.step(self._queries(q, heads), k[:, heads], v[:, heads], mask, scale)
            for heads, part in zip(self._heads, self.parts, strict=True)
        ]
        return self._joined(outs)

    def read(self, q: Float[Tensor, "B H T E"], scale: float | None = None) -> Float[Tensor, "B H T E_v"]:
        """Return what queries at the latest position read of all tokens so far."""
        pairs = zip(self._heads, self.parts, strict=True)
        return self._joined([part.read(self._queries(q, heads), scale) for heads, part in pairs])

    def save(self) -> dict[str, Tensor]:
        """Return copies of all tensors, each under the number of its budget, and which head has which."""
        parts = {f"{at}.{name}": x for at, part in enumerate(self.parts) for name, x in part.save().items()}
        return {**parts, "heads": torch.cat(self._heads)}

    def merge(self, other: "PerHeadState") -> None:
        """Take in the stream that follows this one; see `StreamingState.merge`."""
        if [part.options for part in other.parts] != [part.options for part in self.parts]:
            raise UsageError("merge received a state of other options; expected one of the same budgets.")
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            mine.merge(theirs)

    def select(self, index: Int64[Tensor, " N"]) -> None:
        """Let the batch be the entries at `index`, in that order."""
        for part in self.parts:
            part.select(index)
        self.sizes = (len(index), *self.sizes[1:])

    def _queries(self, q: Tensor, heads: Tensor) -> Tensor:
        """Return the query heads that belong to these kv heads."""
        if q.ndim != 4 or q.shape[1] % self.sizes[1]:
            raise UsageError(
                f"q is {list(q.shape)}; expected [B, H, T, E], H a multiple of {self.sizes[1]} kv heads."
            )
        return q.unflatten(1, (self.sizes[1], -1))[:, heads].flatten(1, 2)

    def _joined(self, outs: list[Tensor]) -> Tensor:
        """Return the heads of all parts in the order of the model."""
        each = [out.unflatten(1, (len(heads), -1)) for out, heads in zip(outs, self._heads, strict=True)]
        return torch.cat(each, 1)[:, self._back].flatten(1, 2)
