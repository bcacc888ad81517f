"""Decode: one token through the model, computing only the neurons it needs.   (floor 5 · engine)

    x = embedding of the token
    for each layer:
        x += attention(norm(x))            every head, keys and values from the cache
        active = predictor(norm(x))        which neurons to compute: a low-rank guess, or their gates
        x += mlp(norm(x), active)          one contiguous record per active neuron
    logits = head(norm(x))

`model.py` defines the same act in plain torch. Here every line is one kernel call on buffers made once.
A predictor runs as soon as what it reads is known, which may be before the layer's attention or in the
layer below (Lookahead). A layer without a predictor computes all its neurons.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float32

from winnow.engine.cache import KvCache
from winnow.engine.config import ModelConfig
from winnow.engine.families import rotary_table
from winnow.engine.sparsity.predictor import Lookahead, Predictor
from winnow.engine.sparsity.sparse_mlp import WinnowedMlp
from winnow.engine.weights import Linear, Norm, Weights
from winnow.kernels import Cpu

Vector = Float32[np.ndarray, " _"]  # D, or the length that the operand beside it gives
Rotation = tuple[Float32[np.ndarray, " E_half"], Float32[np.ndarray, " E_half"]]  # cosine, sine


@final
@dataclass
class DecodeCounts:
    """What was selected, read and waited for since `Decoder.start`, layer by layer.

    `seconds` covers a layer whole, attention included, and the predictor of the layer above where that reads
    this layer's input. Bytes are the weights, predictors, keys and values that the steps were asked to read;
    of a selected neuron that turned out not to fire the kernel reads half.
    """

    n_neurons: int
    active: list[int]
    n_bytes: list[int]
    seconds: list[float]
    head_bytes: int = 0
    steps: int = 0

    @property
    def mlp_density(self) -> float:
        """Share of neurons selected, over all layers and steps; 1 before the first step."""
        return sum(self.active) / (self.n_neurons * len(self.active) * self.steps) if self.steps else 1.0

    @property
    def bytes_per_token(self) -> float:
        """Mean bytes read per step."""
        return (sum(self.n_bytes) + self.head_bytes) / max(self.steps, 1)


@final
@dataclass(frozen=True)
class Schedule:
    """Which layers' predictors run at each layer: when its attention's input is known, and its MLP's."""

    at_attention: tuple[tuple[int, ...], ...]
    at_mlp: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, predictors: Sequence[Predictor | None]) -> "Schedule":
        """Return the earliest time for each: where what it reads is first known."""
        at_attention: list[list[int]] = [[] for _ in predictors]
        at_mlp: list[list[int]] = [[] for _ in predictors]
        for index, predictor in enumerate(predictors):
            if predictor is None:
                continue
            if predictor.lookahead is Lookahead.SAME:
                at_mlp[index].append(index)
            elif predictor.lookahead is Lookahead.NEXT and index > 0:
                at_mlp[index - 1].append(index)
            else:
                at_attention[index].append(index)
        return cls(tuple(map(tuple, at_attention)), tuple(map(tuple, at_mlp)))


@final
class Decoder:
    """Decodes token by token on the CPU, counting as it goes.

    Same bits for any number of threads. Reads all attention and head weights, and of each MLP the predictor
    and the records of the selected neurons. One sequence at a time.
    """

    def __init__(self, weights: Weights, predictors: Sequence[Predictor | None], cpu: Cpu) -> None:
        """Make the buffers; no weight is copied."""
        self.weights = weights
        self.predictors = predictors
        self.cpu = cpu
        self.schedule = Schedule.of(predictors)
        self.buffers = _Buffers(weights.config)
        pairs = zip(weights.layers, predictors, strict=True)
        self.mlps = [WinnowedMlp(layer, predictor, cpu) for layer, predictor in pairs]
        self.counts = self.start()

    def start(self) -> DecodeCounts:
        """Begin a new count and return it; later steps add to it."""
        n_neurons, n_layers = self.weights.config.n_neurons, self.weights.config.n_layers
        self.counts = DecodeCounts(n_neurons, [0] * n_layers, [0] * n_layers, [0.0] * n_layers)
        return self.counts

    def step(self, token: int, cache: KvCache) -> Float32[np.ndarray, " V"]:
        """Return the logits after `token`, which stands at position ``cache.length``; the cache grows by one.

        The array is fresh. The cache must have room and `token` lie in the vocabulary: callers check.
        """
        weights, buffers = self.weights, self.buffers
        x = self._embed(token, cache.length)
        rotation = self._rotation(cache.length)
        for index, layer in enumerate(weights.layers):
            before_s = time.perf_counter()
            if weights.config.is_pre_norm:
                self._norm(layer.attention_norm, x, buffers.normed)
                self._select(self.schedule.at_attention[index], buffers.normed)
                x += self._attention(index, buffers.normed, cache, rotation)
                self._norm(layer.mlp_norm, x, buffers.normed)
                x += self._mlp(index, buffers.normed)
            else:  # OPT-350m norms after the sum
                self._select(self.schedule.at_attention[index], x)
                x += self._attention(index, x, cache, rotation)
                self._norm(layer.attention_norm, x, x)
                x += self._mlp(index, x)
                self._norm(layer.mlp_norm, x, x)
            self.counts.seconds[index] += time.perf_counter() - before_s
        cache.length += 1
        self.counts.steps += 1
        return self._logits(x)

    def _embed(self, token: int, position: int) -> Vector:
        weights = self.weights
        x = weights.embed[token].float().numpy()
        if weights.project_in is not None:
            x = self._linear(weights.project_in, x, np.empty(weights.config.width, np.float32))
        if weights.positions is not None:
            x = x + weights.positions[position].float().numpy()
        return x if x.flags.owndata else x.copy()  # x is added to: it must not be the embedding's own row

    def _rotation(self, position: int) -> Rotation | None:
        config = self.weights.config
        if config.rope is None:
            return None
        cos, sin = rotary_table(config.rope, config.head_width, position, 1)
        return cos[0].numpy(), sin[0].numpy()

    def _attention(self, index: int, x: Vector, cache: KvCache, rotation: Rotation | None) -> Vector:
        """Return attention over all positions up to this one, its key and value stored first."""
        layer, block, buffers = self.weights.layers[index], cache.blocks[index], self.buffers
        self._linear(layer.qkv, x, buffers.qkv)
        for norm, heads in ((layer.q_norm, buffers.q), (layer.k_norm, buffers.k)):
            if norm is not None:
                norm.apply(self.cpu, heads, heads)
        position = cache.length
        if rotation is not None:
            self.cpu.rotate(buffers.q, *rotation)
            self.cpu.rotate(buffers.k, *rotation)
        self.cpu.append_kv(block, position, buffers.k, buffers.v)
        start = 0 if layer.window is None else max(position + 1 - layer.window, 0)
        scale = block.head_width**-0.5
        self.cpu.attend(buffers.q, block, start, position + 1, scale, buffers.mixed)
        kv_bytes = 2 * (position + 1 - start) * block.n_kv_heads * block.head_width * block.dtype.itemsize
        self.counts.n_bytes[index] += layer.qkv.n_bytes + layer.out.n_bytes + kv_bytes
        return self._linear(layer.out, buffers.mixed.reshape(-1), buffers.attended)

    def _select(self, layers: Sequence[int], view: Vector) -> None:
        """Let the predictors of `layers`, which read `view`, list the neurons to compute."""
        for index in layers:
            self.mlps[index].select(view)

    def _mlp(self, index: int, x: Vector) -> Vector:
        """Return the contribution of the neurons that the predictor selects; of all where there is none."""
        mlp, out = self.mlps[index], self.buffers.mlp
        self._select(self.schedule.at_mlp[index], x)
        mlp.apply(x, out)
        self.counts.active[index] += mlp.n_active
        self.counts.n_bytes[index] += mlp.n_bytes
        return out

    def _logits(self, x: Vector) -> Float32[np.ndarray, " V"]:
        weights = self.weights
        if weights.final_norm is not None:
            self._norm(weights.final_norm, x, x)
        if weights.project_out is not None:
            x = self._linear(weights.project_out, x, np.empty(weights.config.embed_width, np.float32))
        self.counts.head_bytes += weights.head.n_bytes
        return self._linear(weights.head, x, np.empty(weights.config.vocab_size, np.float32))

    def _linear(self, linear: Linear, x: Vector, out: Vector) -> Vector:
        linear.apply(self.cpu, x, out)
        return out

    def _norm(self, norm: Norm, x: Vector, out: Vector) -> None:
        norm.apply(self.cpu, x[None], out[None])


class _Buffers:
    """Working arrays of one decode step, allocated once."""

    def __init__(self, config: ModelConfig) -> None:
        n_q, n_kv, _ = config.qkv_rows
        self.normed = np.empty(config.width, np.float32)
        self.qkv = np.empty(n_q + 2 * n_kv, np.float32)
        self.q = self.qkv[:n_q].reshape(config.n_heads, config.head_width)  # views of qkv
        self.k = self.qkv[n_q : n_q + n_kv].reshape(config.n_kv_heads, config.head_width)
        self.v = self.qkv[n_q + n_kv :].reshape(config.n_kv_heads, config.head_width)
        self.mixed = np.empty((config.n_heads, config.head_width), np.float32)
        self.attended = np.empty(config.width, np.float32)
        self.mlp = np.empty(config.width, np.float32)
