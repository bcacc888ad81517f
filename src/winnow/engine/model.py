"""Model: what every engine must compute, in plain torch, in the order of the act.   (floor 5 · engine)

    ids -> embed -> [ attention -> MLP ] per layer -> norm -> head -> logits

One sequence, T new tokens at the absolute positions cache.length, cache.length + 1, ... The residual
stream, norms and softmax are float32; matrix products are computed in the weights' type. The MLP is a
slot: `dense_mlp` fills it here, the sparse definition and the collectors of calibration fill it too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.engine.cache import KvCache
from winnow.engine.families.rope import rotary_table, rotate
from winnow.engine.weights import Layer, MlpWeights, Weights, product
from winnow.kernels import KvBlock

# Prompts are computed in chunks that end at multiples of this position: memory stays bounded, and a prompt
# is always cut at the same places, whatever else runs.
CHUNK = 512


@final
@dataclass(frozen=True)
class MlpInputs:
    """What is known when an MLP's turn comes: its input, and the views from which neurons can be foretold.

    All as the sublayer that they belong to reads them: behind its norm where the model norms before.
    """

    own: Float32[Tensor, "T D"]  # what the MLP reads
    attention: Float32[Tensor, "T D"]  # what the attention of the same layer read
    below: Float32[Tensor, "T D"]  # what the MLP of the layer below read; in layer 0, `attention`


# (layer index, layer, views) -> MLP output [T, D], its bias included
Mlp = Callable[[int, Layer, MlpInputs], Tensor]
Rotation = tuple[Tensor, Tensor]  # cosine and sine, [T, E/2] each
HeadWatch = Callable[[Float32[Tensor, "T K sharers E"]], Float32[Tensor, "T K sharers E"]]


@final
@dataclass(frozen=True)
class Dropped:
    """What watches the heads, and the positions whose keys and values a head has for good gone without."""

    watch: HeadWatch
    positions: Bool[Tensor, "K keys"]


# (layer index, layer, what its attention reads) -> what watches its heads
Heads = Callable[[int, Layer, Float32[Tensor, "T D"]], HeadWatch | Dropped | None]


def embed(weights: Weights, ids: Int64[Tensor, " T"], start: int) -> Float32[Tensor, "T D"]:
    """Return the rows of the tokens `ids`, which stand at positions start, start + 1, ..."""
    x = weights.embed.rows(ids)
    if weights.project_in is not None:
        x = weights.project_in(x)
    if weights.positions is not None:
        x = x + weights.positions[start : start + len(ids)].float()
    return x


def attention(
    layer: Layer,
    x: Float32[Tensor, "T D"],
    block: KvBlock,
    start: int,
    rotation: Rotation | None,
    watch: HeadWatch | Dropped | None = None,
) -> Float32[Tensor, "T D"]:
    """Return the attention of T tokens over themselves and the `start` positions before them.

    Stores the tokens' keys and values in `block`. Query head h reads key head ``h // (H / K)``. Each key
    head in turn holds ``H / K * T * (start + T)`` float32 scores. `watch` is shown what the heads say and
    returns what of it is heard. A position that a head has dropped is seen by its own query alone.
    """
    n_tokens, head_width, n_kv_heads = len(x), block.head_width, block.n_kv_heads
    heads = layer.qkv(x).view(n_tokens, -1, head_width)  # T, H + 2 K, E
    q, k, v = heads.split([heads.shape[1] - 2 * n_kv_heads, n_kv_heads, n_kv_heads], dim=1)
    q = q if layer.q_norm is None else layer.q_norm(q)
    k = k if layer.k_norm is None else layer.k_norm(k)
    if rotation is not None:
        q, k = rotate(q, *rotation), rotate(k, *rotation)

    end = start + n_tokens
    block.put(start, k.transpose(0, 1), v.transpose(0, 1))

    hidden = hidden_keys(start, end, layer.window)
    dropped, watch = (watch.positions, watch.watch) if isinstance(watch, Dropped) else (None, watch)
    q = (q * head_width**-0.5).unflatten(1, (n_kv_heads, -1))  # T, K, H / K, E
    mixed = torch.empty_like(q)
    kept = block.floats(0, end)
    for head in range(n_kv_heads):
        keys, values = (each[head].float() for each in kept)
        unseen = hidden if dropped is None else hidden | (dropped[head] & _others(start, end))
        scores = torch.einsum("tge,se->gts", q[:, head], keys).masked_fill(unseen, float("-inf"))
        mixed[:, head] = torch.einsum("gts,se->tge", scores.softmax(-1), values)
    return layer.out((mixed if watch is None else watch(mixed)).flatten(1))


def _others(start: int, end: int) -> Bool[Tensor, "T keys"]:
    """Say which of the keys 0..end-1 are not the query's own."""
    return torch.arange(start, end)[:, None] != torch.arange(end)


def hidden_keys(start: int, end: int, window: int | None) -> Tensor:
    """Say for the queries at start..end-1 which of the keys 0..end-1 they must not see, as [T, S]."""
    query, key = torch.arange(start, end)[:, None], torch.arange(end)
    hidden = key > query
    return hidden if window is None else hidden | (key <= query - window)


def activations(layer: MlpWeights, x: Float32[Tensor, "T D"]) -> Float32[Tensor, "T F"]:
    """Return how strongly each neuron fires: ``act(w_in x + bias) [* (w_up x + bias_up)]``."""
    active = layer.activation(product(x, layer.mlp.w_in) + layer.mlp.bias)
    return active * (product(x, layer.mlp.w_up) + layer.mlp.bias_up) if layer.mlp.is_gated else active


def weighted_sum(layer: MlpWeights, active: Float32[Tensor, "T F"]) -> Float32[Tensor, "T D"]:
    """Return the neurons' out-weights, summed with the weights `active`, plus the MLP's bias."""
    y = product(active, layer.mlp.w_out.T)
    return y if layer.mlp_bias is None else y + layer.mlp_bias


def dense_mlp(index: int, layer: Layer, inputs: MlpInputs) -> Float32[Tensor, "T D"]:
    """Return the output of all neurons; `index`, the layer's number, is for other fillers of the slot."""
    return weighted_sum(layer, activations(layer, inputs.own))


def all_heads(index: int, layer: Layer, x: Float32[Tensor, "T D"]) -> None:
    """Leave every head as it is."""


def hidden(
    weights: Weights,
    ids: Int64[Tensor, " T"],
    cache: KvCache,
    *,
    mlp: Mlp = dense_mlp,
    heads: Heads = all_heads,
) -> Float32[Tensor, "T D"]:
    """Return the residual stream after the last layer and norm; the cache grows by T positions.

    Raises UsageError when the tokens do not fit into the cache or the vocabulary.
    """
    config, start = weights.config, cache.length
    check_ids(ids, config.vocab_size, cache)
    x = embed(weights, ids, start)
    rotation = None if config.rope is None else rotary_table(config.rope, config.head_width, start, len(ids))
    below = None
    for index, (layer, block) in enumerate(zip(weights.layers, cache.blocks, strict=True)):
        # Pre-norm: x + f(norm(x)). OPT-350m norms after the sum instead: norm(x + f(x)).
        read = layer.attention_norm(x) if config.is_pre_norm else x
        x = x + attention(layer, read, block, start, rotation, heads(index, layer, read))
        x = x if config.is_pre_norm else layer.attention_norm(x)
        own = layer.mlp_norm(x) if config.is_pre_norm else x
        x = x + mlp(index, layer, MlpInputs(own, read, read if below is None else below))
        x = x if config.is_pre_norm else layer.mlp_norm(x)
        below = own
    cache.length = start + len(ids)
    return x if weights.final_norm is None else weights.final_norm(x)


def logits(weights: Weights, x: Float32[Tensor, "T D"]) -> Float32[Tensor, "T V"]:
    """Return the score of every token of the vocabulary for rows of the final residual stream."""
    return weights.head(x if weights.project_out is None else weights.project_out(x))


def forward(
    weights: Weights,
    ids: Int64[Tensor, " T"],
    cache: KvCache,
    *,
    mlp: Mlp = dense_mlp,
    heads: Heads = all_heads,
) -> Float32[Tensor, "T V"]:
    """Return the logits after each of the tokens `ids`, all computed in one piece."""
    return logits(weights, hidden(weights, ids, cache, mlp=mlp, heads=heads))


def prefill(
    weights: Weights, ids: Int64[Tensor, " T"], cache: KvCache, *, mlp: Mlp = dense_mlp
) -> Float32[Tensor, " V"]:
    """Return the logits after the last of the tokens `ids`, computed in chunks of at most 512."""
    check_ids(ids, weights.config.vocab_size, cache)
    last = torch.empty(0)
    done = 0
    while done < len(ids):
        size = CHUNK - cache.length % CHUNK
        last = hidden(weights, ids[done : done + size], cache, mlp=mlp)[-1:]
        done += size
    return logits(weights, last)[0]


def check_ids(ids: Tensor, vocab_size: int, cache: KvCache) -> None:
    """Refuse no tokens, more than the cache has room for, and those that the model does not know."""
    if len(ids) == 0:
        raise UsageError("No tokens were given, expected at least one. Pass a prompt that is not empty.")
    if len(ids) > cache.capacity - cache.length:
        raise UsageError(
            f"{len(ids)} tokens were given after {cache.length}, the cache has room for {cache.capacity}. "
            "Shorten the prompt or ask for fewer tokens."
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise UsageError(f"Token ids run from {low} to {high}, the model knows 0 to {vocab_size - 1}.")
