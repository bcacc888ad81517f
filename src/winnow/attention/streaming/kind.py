"""Kind: streaming attention as one of the kinds, and its maker.   (floor 4 · attention)"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.attention.streaming.certificate import Certificate
from winnow.attention.streaming.options import StreamingOptions
from winnow.attention.streaming.rotation import Rotation
from winnow.attention.streaming.state import Sizes, StreamingState
from winnow.base.errors import UsageError


@final
@dataclass(frozen=True)
class Streaming:
    """Attention in constant memory; see `streaming`, which makes it."""

    options: StreamingOptions

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
        """Return the attention of `q` over `k`, `v`: of each query over its past, or of all over all.

        `mask` is bool [B, T_k], True for real tokens. Raises UsageError as `StreamingState.step` does.
        """
        state = self.start(*sizes_of(k, v), device=k.device)
        if causal:
            return state.step(q, k, v, mask, scale)
        state.append(k, v, mask)
        return state.read(q, scale).to(v.dtype)

    def certified(
        self,
        q: Float[Tensor, "B H T E"],
        k: Float[Tensor, "B K T_k E"],
        v: Float[Tensor, "B K T_k E_v"],
        *,
        causal: bool = True,
        scale: float | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "B H T E_v"], Certificate]:
        """Return the attention and what is known of its error, per query of each head."""
        state = self.start(*sizes_of(k, v), device=k.device)
        if causal:
            return state.certified_step(q, k, v, mask, scale)
        state.append(k, v, mask)
        out, certificate = state.certified_read(q, scale)
        return out.to(v.dtype), certificate

    def start(
        self,
        batch: int,
        n_kv_heads: int,
        key_width: int,
        value_width: int,
        *,
        device: torch.device | str | None = None,
    ) -> StreamingState:
        """Return the state of `batch` streams of which nothing is seen yet.

        Takes all its memory at once: per row (batch times key-value heads) about
        4 (E + E_v) (window + block + sinks + heavy + 3 clusters + reservoir) + 4 E (E + E_v) bytes.
        """
        sizes = (batch, n_kv_heads, key_width, value_width)
        return StreamingState(self.options, sizes, torch.device("cpu" if device is None else device))

    def load(self, tensors: dict[str, Tensor]) -> StreamingState:
        """Return the state that `save` took the tensors of; raises UsageError if it had other options."""
        counts = tensors.get("counts")
        if counts is None or counts.shape != (7,):
            raise UsageError(
                "The tensors hold no streaming state: `counts` is missing. Give what save() made."
            )
        batch, heads, width, value_width = counts[:4].tolist()
        state = StreamingState(self.options, (batch, heads, width, value_width), tensors["query_norm"].device)
        state.restore(tensors)
        return state


def sizes_of(k: Tensor, v: Tensor) -> Sizes:
    """Return B, K, E, E_v of keys and values; raises UsageError where they have no four axes."""
    if k.ndim != 4 or v.ndim != 4:
        raise UsageError(f"k is {list(k.shape)}, v is {list(v.shape)}; expected [B, K, T, E].")
    return k.shape[0], k.shape[1], k.shape[3], v.shape[3]


def streaming(  # noqa: PLR0913 (a public verb; its options become a dataclass at once)
    window: int,
    *,
    sinks: int = 4,
    heavy: int = 256,
    clusters: int = 64,
    remainder: str = "on",
    block: int = 64,
    reservoir: int = 768,
    position: str = "absolute",
    rotation: Rotation | None = None,
    trained: int | None = None,
    strict: bool = False,
    tolerance: float = 0.1,
    exact_tokens: int = 0,
    seed: int = 0,
) -> Streaming:
    """Return attention whose memory and time per token do not grow: nothing is dropped, most is summed.

    Exact are the first `sinks` tokens, the last `window` (up to `block` more) and the `heavy` keys that
    matter most; all others are absorbed into `clusters` clusters, which enter the same softmax by their
    second cumulant. While a stream has at most window + heavy tokens, it is exact attention to 1e-5.

    `remainder` "off" leaves the absorbed tokens out, "zero" keeps their weight and nulls their values:
    ablations. `position` says where old tokens seem to stand, for rotary keys of the angles `rotation`:
    where they were ("absolute"), or no farther than they were when they left the buffer ("cache") or when
    the stream had `trained` tokens ("clamp"). All are exact rotations of the state.

    `certified` calls return bounds of the error, one of them statistical, from a uniform sample of
    `reservoir` absorbed tokens drawn by `seed`. `strict` holds every read to `tolerance`, an error in the
    units of v, by that bound: a read beyond it is done again exactly while the stream has at most
    `exact_tokens` tokens, which are kept besides for that (4 (E + E_v) bytes each per head), and raises
    UsageError afterwards.

    Void for retrieval: a key that looked like its neighbours when it left the window is not recalled exactly.
    No gradients. After arXiv:2311.14652 (abstract), construction ours. Raises UsageError for impossible
    budgets.
    """
    return Streaming(
        StreamingOptions(
            window=window,
            sinks=sinks,
            heavy=heavy,
            clusters=clusters,
            remainder=remainder,
            block=block,
            reservoir=reservoir,
            position=position,
            rotation=rotation,
            trained=trained,
            strict=strict,
            tolerance=tolerance,
            exact_tokens=exact_tokens,
            seed=seed,
        )
    )
