"""Contract: what every kind of attention offers, whole sequences and streams alike.   (floor 4 · attention)

    out_t = sum over the visible s of w(q_t, k_s) v_s / sum over the visible s of w(q_t, k_s)

A kind is one choice of the weight w. It is called on whole sequences, or started as a state that takes keys
and values in chunks and answers queries at any time; both paths are the same arithmetic, so that training,
prefill and decoding agree. The widths of keys and of values may differ: ``E`` and ``E_v``. Query head h
reads kv head ``h // (H // K)``.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class State(Protocol):
    """What remains of the keys and values seen so far."""

    @property
    def seen(self) -> int:
        """Positions appended, padding included."""
        ...

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors that the state keeps."""
        ...

    def append(
        self,
        k: Float[Tensor, "B K T E"],
        v: Float[Tensor, "B K T E_v"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> None:
        """Take in the next `T` positions; where `mask` is False there is padding, which is never seen."""
        ...

    def read(self, q: Float[Tensor, "B H T E"], scale: float | None = None) -> Float[Tensor, "B H T E_v"]:
        """Return the attention of each query over all positions seen so far, in the dtype of the values."""
        ...

    def save(self) -> dict[str, Tensor]:
        """Return the whole state as tensors, for safetensors; `Kind.load` makes a state of them again."""
        ...

    def merge(self, other: Any) -> None:
        """Take in the positions of `other` after this one's own; `other` stays as it is.

        Shards of a prompt can so be read in parallel. Raises UsageError where the two do not fit together.
        """
        ...


@runtime_checkable
class Kind(Protocol):
    """One weight function: on whole sequences, and as a stream."""

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
        """Return the attention of each query, in the dtype of `v`.

        When `causal`, the queries stand at the end of the keys: query t sees keys up to ``T_keys - T + t``.
        `scale` multiplies the query; None is the kind's own. `mask` is True at real tokens. A query that sees
        no key gets zeros. Raises UsageError for shapes that do not fit, integers, and numbers not finite.
        """
        ...

    def start(
        self,
        batch: int,
        n_kv_heads: int,
        key_width: int,
        value_width: int,
        *,
        device: torch.device | str | None = None,
    ) -> State:
        """Return an empty state."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> State:
        """Return the state that `State.save` gave; raises UsageError when another kind saved it."""
        ...
