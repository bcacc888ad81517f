"""Prefill: a prompt read quickly, in chunks that end at fixed positions.   (floor 5 · engine)

`model.prefill` is the definition; the order of the act is the same. Products are torch's, in bfloat16 or, for
float32 weights, in float32, on the weights where they lie; int8 and int4 are unpacked first, matrix by
matrix, into one scratch that all of them share. Attention is torch's too, in the type of the cache, or of the
products where that is int8. Of the last layer only what the cache and the last token need is computed. A
chunk of a few tokens is cheaper as decode steps over all neurons: each reads the packed bytes once, and
nothing is unpacked.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from winnow.engine.cache import KvCache
from winnow.engine.config import ModelConfig
from winnow.engine.decode import Decoder
from winnow.engine.families import rotary_table
from winnow.engine.families.rope import rotate
from winnow.engine.model import CHUNK, Rotation, check_ids, embed, hidden_keys
from winnow.engine.weights import HeadLinear, Layer, Linear, RmsNorm, Weights
from winnow.kernels import AnyMatrix, Cpu, KvBlock, Matrix, int4
from winnow.kernels.gathered_linear import from_blocks

# The longest chunks that are read token by token: beyond, a product with all tokens is faster.
MOST_STEPS = {torch.float32: 1, torch.bfloat16: 1, torch.int8: 6, int4: 8}


@final
class Prefill:
    """Reads prompts of one model, densely.

    Keys, values and logits are those of `model.prefill` up to rounding, whatever the cache holds beyond the
    prompt, and the same bits for any number of threads; float32 sums alone are ordered by that number, which
    moves their last bits. A prompt parted where a chunk ends gives the bits of the whole. Reads every weight
    once per chunk, or once per step. Beyond the model it holds its largest matrix in bfloat16, and that only
    where the weights are int8 or int4.
    """

    def __init__(self, weights: Weights, cpu: Cpu) -> None:
        """Remember both; no weight is copied."""
        self.weights = weights
        self._cpu = cpu
        self._steps = Decoder(weights, (None,) * weights.config.n_layers, cpu)
        self.dtype = weights.product_dtype
        self._scratch = torch.empty(0, dtype=torch.bfloat16)

    @property
    def scratch_bytes(self) -> int:
        """Memory held to unpack into."""
        return self._scratch.nbytes

    def read(self, ids: Int64[Tensor, " T"], cache: KvCache) -> Float32[np.ndarray, " V"]:
        """Return the logits after the last of the tokens `ids`; the cache grows by T positions.

        Raises UsageError when the tokens do not fit into the cache or the vocabulary.
        """
        check_ids(ids, self.weights.config.vocab_size, cache)
        logits = np.empty(self.weights.config.vocab_size, np.float32)
        done = 0
        while done < len(ids):
            chunk = ids[done : done + CHUNK - cache.length % CHUNK]
            done += len(chunk)
            if len(chunk) <= MOST_STEPS[self.weights.dtype]:
                steps = self._steps.start(cache)
                logits = [steps.step(token)[0] for token in chunk.tolist()][-1]
            else:
                x = self._hidden(chunk, cache, n_wanted=1 if done == len(ids) else 0)
                if len(x):
                    self.head(x, logits[None])
        return logits

    def _hidden(self, ids: Int64[Tensor, " T"], cache: KvCache, n_wanted: int) -> Float32[Tensor, "wanted D"]:
        """Return the last rows of the residual stream after the last layer and norm."""
        weights, chunk = self.weights, _Chunk(self.weights.config, cache.length, cache.length + len(ids))
        x = embed(weights, ids, cache.length)
        for layer, block in zip(weights.layers, cache.blocks, strict=True):
            x = self._layer(layer, block, x, n_wanted if block is cache.blocks[-1] else len(x), chunk)
        cache.length = chunk.end
        return x if weights.final_norm is None else weights.final_norm(x)

    def _layer(
        self, layer: Layer, block: KvBlock, x: Float32[Tensor, "T D"], n_wanted: int, chunk: "_Chunk"
    ) -> Float32[Tensor, "wanted D"]:
        """Store the keys and values of all rows; return the layer's output in the last `n_wanted` of them."""
        is_pre_norm, first = self.weights.config.is_pre_norm, len(x) - n_wanted
        read = (layer.attention_norm(x) if is_pre_norm else x).to(self.dtype)
        self._remember(layer, block, read, chunk)
        x = x[first:]
        if n_wanted == 0:
            return x
        x = x + self._attention(layer, block, read[first:], chunk)
        x = x if is_pre_norm else layer.attention_norm(x)
        x = x + self.mlp(layer, layer.mlp_norm(x) if is_pre_norm else x)
        return x if is_pre_norm else layer.mlp_norm(x)

    def _remember(self, layer: Layer, block: KvBlock, read: Float[Tensor, "T D"], chunk: "_Chunk") -> None:
        kv = self.rows(layer.qkv, read, self.weights.config.qkv_rows[0], layer.qkv.matrix.shape[0])
        k, v = kv.view(len(read), 2, block.n_kv_heads, -1).unbind(1)  # T, K, E
        block.put(chunk.start, _placed(k, layer.k_norm, chunk.rotation).transpose(0, 1), v.transpose(0, 1))

    def _attention(
        self, layer: Layer, block: KvBlock, read: Float[Tensor, "wanted D"], chunk: "_Chunk"
    ) -> Float[Tensor, "wanted D"]:
        """Return what the last rows of the chunk hear of themselves and of the positions before them."""
        q = self.rows(layer.qkv, read, 0, self.weights.config.qkv_rows[0])
        q = _placed(q.view(len(read), -1, block.head_width), layer.q_norm, chunk.rotation)
        dtype = self.dtype if block.dtype == torch.int8 else block.dtype
        q = q.to(dtype).unflatten(1, (block.n_kv_heads, -1)).permute(1, 2, 0, 3)  # K, H / K, T, E
        first, hidden = chunk.seen(layer.window, len(read), dtype)
        keys, values = (
            cached.to(dtype)[:, None].expand(-1, q.shape[1], -1, -1)
            for cached in block.floats(first, chunk.end)
        )
        mixed = scaled_dot_product_attention(q, keys, values, attn_mask=hidden, is_causal=hidden is None)
        return self.out(layer, mixed.permute(2, 0, 1, 3).flatten(1))

    def out(self, layer: Layer, mixed: Float[Tensor, "T M"]) -> Float[Tensor, "T D"]:
        """Return the map behind attention of what the heads say, one after the other."""
        weight = self._weight(layer.out.matrix)
        if isinstance(layer.out, HeadLinear):
            weight = from_blocks(weight, layer.out.n_heads)
        return self._product(mixed, weight, layer.out.bias)

    def mlp(self, layer: Layer, x: Float32[Tensor, "wanted D"]) -> Float[Tensor, "wanted D"]:
        """Return the output of all neurons."""
        x, mlp = x.to(self.dtype), layer.mlp
        active = layer.activation(self._product(x, self._weight(mlp.part("w_in")), mlp.bias))
        if mlp.is_gated:
            active *= self._product(x, self._weight(mlp.part("w_up")), mlp.bias_up)
        return self._product(active, self._weight(mlp.part("w_out")).T, layer.mlp_bias)

    def rows(self, part: Linear, x: Float[Tensor, "T D"], start: int, stop: int) -> Float[Tensor, "T M"]:
        """Return the product with some rows of a map."""
        weight = self._weight(part.matrix.part(start, stop))
        return self._product(x, weight, None if part.bias is None else part.bias[start:stop])

    def _product(
        self, x: Float[Tensor, "T D"], weight: Float[Tensor, "M D"], bias: Float32[Tensor, " M"] | None
    ) -> Float[Tensor, "T M"]:
        """Return ``x @ weight.T + bias``; the bias is rounded, and then the sum."""
        return linear(x.to(self.dtype), weight, None if bias is None else bias.to(self.dtype))

    def _weight(self, matrix: AnyMatrix) -> Float[Tensor, "M D"]:
        """Return the weights as floats: where they lie, or unpacked until the next call."""
        if isinstance(matrix, Matrix):
            return matrix.weight
        n_rows, width = matrix.shape
        if self._scratch.numel() < n_rows * width:
            self._scratch = torch.empty(n_rows * width, dtype=torch.bfloat16)
        weight = self._scratch[: n_rows * width].view(n_rows, width)
        self._cpu.unpack(matrix, 0, weight.view(torch.uint16).numpy())
        return weight

    def head(self, x: Float32[Tensor, "1 D"], logits: Float32[np.ndarray, "1 V"]) -> None:
        """Write the logits after one row of the final residual stream."""
        last = x.contiguous().numpy()
        if self.weights.project_out is not None:
            projected = np.empty((1, self.weights.config.embed_width), np.float32)
            self.weights.project_out.apply(self._cpu, last, projected)
            last = projected
        self.weights.head.apply(self._cpu, last, logits)


@final
@dataclass(frozen=True)
class _Chunk:
    """Where the tokens of a chunk stand: start .. end - 1."""

    config: ModelConfig
    start: int
    end: int

    @cached_property
    def rotation(self) -> Rotation | None:
        """Cosine and sine of every position."""
        config = self.config
        if config.rope is None:
            return None
        return rotary_table(config.rope, config.head_width, self.start, self.end - self.start)

    def seen(self, window: int | None, n_rows: int, dtype: torch.dtype) -> tuple[int, Tensor | None]:
        """Return the first position that the last `n_rows` see, and what hides others, None if causal."""
        query = self.end - n_rows
        first = 0 if window is None else max(0, query - window + 1)
        if window is None and query == 0:
            return first, None
        hidden = hidden_keys(query, self.end, window)[:, first:]
        return first, torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _placed(
    x: Float[Tensor, "T N E"], norm: RmsNorm | None, rotation: Rotation | None
) -> Float[Tensor, "T N E"]:
    """Return the heads of the last positions of a chunk, normed and rotated where the model does so."""
    x = x if norm is None else norm(x.float())
    if rotation is None:
        return x
    cos, sin = rotation
    return rotate(x.float(), cos[-len(x) :], sin[-len(x) :])
