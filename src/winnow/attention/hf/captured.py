"""Captured: what a model attends with on a text, and the budgets that suit it.   (floor 4 · attention)"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from winnow.attention.streaming import Calibration, StreamingOptions, calibrate_remainder

NAME = "winnow_captured"


@final
@dataclass(frozen=True)
class Captured:
    """Queries, keys and values of one layer, positions in them where the model rotates, and its scale."""

    q: Float[Tensor, "B H T E"]
    k: Float[Tensor, "B K T E"]
    v: Float[Tensor, "B K T E_v"]
    scale: float | None


def captured(model: PreTrainedModel, ids: Int64[Tensor, "B T"]) -> list[Captured]:
    """Return what each layer attends with when `model` reads `ids` at once, in the order of the layers.

    The model attends as with "sdpa" and has its own implementation again afterwards. Holds all of it: ``4 B T
    (H + K) E + ...`` bytes per layer; a few thousand tokens are enough.
    """
    found: list[Captured] = []

    def note(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        found.append(Captured(query, key, value, scaling))
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=True
        )

    before = model.config._attn_implementation
    AttentionInterface.register(NAME, note)
    try:
        model.set_attn_implementation(NAME)
        with torch.no_grad():
            model(ids, use_cache=False)
    finally:
        model.set_attn_implementation("sdpa" if before is None else before)
    return found


def calibrated(
    model: PreTrainedModel,
    ids: Int64[Tensor, "B T"],
    candidates: Sequence[StreamingOptions],
    *,
    target: float | None = None,
    budget_bytes: int | None = None,
) -> list[Calibration]:
    """Return the calibration of each layer on a text: see `calibrate_remainder`, which says what is raised.

    ``StreamingCache(model.config, [layer.kind for layer in found])`` then streams by it.
    """
    return [
        calibrate_remainder(
            layer.q,
            layer.k,
            layer.v,
            candidates,
            target=target,
            budget_bytes=budget_bytes,
            scale=layer.scale,
        )
        for layer in captured(model, ids)
    ]
