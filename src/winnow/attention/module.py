"""Module: any kind of attention as a layer of a network.   (floor 4 · attention)"""

from dataclasses import dataclass
from typing import final

from jaxtyping import Bool, Float
from torch import Tensor, nn

from winnow.attention.contract import Kind, State
from winnow.base.errors import UsageError


@final
@dataclass(frozen=True)
class AttentionSizes:
    """Model width, heads, kv heads and head width; kv heads and head width follow where they are 0."""

    width: int
    n_heads: int
    n_kv_heads: int = 0
    head_width: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if self.width < 1 or self.n_heads < 1 or self.n_kv_heads < 0 or self.head_width < 0:
            raise UsageError(f"{self}; expected positive sizes.")
        if self.n_heads % self.kv_heads:
            raise UsageError(
                f"n_heads is {self.n_heads}, n_kv_heads {self.kv_heads}; expected a multiple of it."
            )
        if not self.head_width and self.width % self.n_heads:
            raise UsageError(
                f"width {self.width} is no multiple of n_heads {self.n_heads}; give head_width as well."
            )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: as many as query heads unless given."""
        return self.n_kv_heads or self.n_heads

    @property
    def per_head(self) -> int:
        """Width of a head."""
        return self.head_width or self.width // self.n_heads


@final
class Attention(nn.Module):
    """Linear maps to queries, keys and values, a kind of attention, and a linear map back.

    The kind is fixed and holds no parameters. There are no positions in it: rotate or add them before.
    """

    def __init__(self, kind: Kind, sizes: AttentionSizes, *, causal: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.kind, self.sizes, self.causal = kind, sizes, causal
        inner, shared = sizes.n_heads * sizes.per_head, sizes.kv_heads * sizes.per_head
        self.to_q = nn.Linear(sizes.width, inner, bias=bias)
        self.to_k = nn.Linear(sizes.width, shared, bias=bias)
        self.to_v = nn.Linear(sizes.width, shared, bias=bias)
        self.to_out = nn.Linear(inner, sizes.width, bias=bias)

    def forward(
        self, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return the layer's output for whole sequences; `mask` is True at real tokens."""
        q, k, v = self._heads(x)
        return self._back(self.kind(q, k, v, causal=self.causal, mask=mask))

    def start(self, batch: int) -> State:
        """Return an empty state for `step`."""
        per_head, device = self.sizes.per_head, self.to_k.weight.device
        return self.kind.start(batch, self.sizes.kv_heads, per_head, per_head, device=device)

    def step(
        self, x: Float[Tensor, "B one D"], state: State, mask: Bool[Tensor, "B one"] | None = None
    ) -> Float[Tensor, "B one D"]:
        """Return the output for one more token per sequence, which `state` takes in.

        Equal to the last position of a causal `forward` over all tokens so far, up to rounding. Raises
        UsageError for more than one token, and where the layer is not causal.
        """
        if x.shape[1] != 1 or not self.causal:
            raise UsageError(
                f"step received {x.shape[1]} tokens, causal={self.causal}; expected 1 and a causal layer."
            )
        q, k, v = self._heads(x)
        state.append(k, v, mask)
        return self._back(state.read(q))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = (self.to_q, self.to_k, self.to_v)
        shape = (-1, self.sizes.per_head)
        q, k, v = (each(x).unflatten(-1, shape).transpose(1, 2) for each in maps)
        return q, k, v

    def _back(self, out: Tensor) -> Tensor:
        return self.to_out(out.transpose(1, 2).flatten(2).to(self.to_out.weight.dtype))
