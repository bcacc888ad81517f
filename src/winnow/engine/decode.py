"""Decode: one token through the model, computing only the neurons it needs.   (floor 5 · engine)

    x = embedding of the token
    for each layer:
        heads = predictor(norm(x))         which heads to compute; all where there is none
        x += attention(norm(x), heads)     keys and values of every head are computed, or owed (cache.py)
        active = predictor(norm(x))        which neurons to compute: a low-rank guess, or their gates
        x += mlp(norm(x), active)          one contiguous record per active neuron
    logits = head(norm(x))

`model.py` defines the same act in plain torch. Here every line is one kernel call on buffers made once,
recorded on a tape when a decoding begins and run once per token. A predictor runs as soon as what it reads is
known, which may be before the layer's attention or in the layer below (Lookahead). A layer without a
predictor computes all its neurons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float32

from winnow.base.errors import UsageError
from winnow.engine.cache import KV_POLICIES, Backlog, KvCache, KvPolicy
from winnow.engine.config import ModelConfig
from winnow.engine.families import rotary_table
from winnow.engine.sparsity.predictor import HeadPredictor, Lookahead, Predictor
from winnow.engine.sparsity.sparse_mlp import WinnowedMlp
from winnow.engine.weights import HeadLinear, RmsNorm, Weights
from winnow.kernels import Cpu

Vector = Float32[np.ndarray, " _"]  # D, or the length that the operand beside it gives
ROTARY_POSITIONS = 256  # whose angles are computed at once


@final
@dataclass
class DecodeCounts:
    """What was selected, read and waited for since `Decoder.start`, layer by layer.

    `seconds` covers a layer whole, attention included, and the predictor of the layer above where that reads
    this layer's input. Bytes are the weights, predictors, keys and values that the steps were asked to read;
    of a selected neuron that turned out not to fire the kernel reads half.
    """

    n_neurons: int
    n_heads: int  # kv heads, each left out with all heads that share it
    active: list[int]
    heads: list[int]
    n_bytes: list[int]
    seconds: list[float]
    head_bytes: int = 0  # of the map to logits
    steps: int = 0

    @property
    def mlp_density(self) -> float:
        """Share of neurons selected, over all layers and steps; 1 before the first step."""
        return sum(self.active) / (self.n_neurons * len(self.active) * self.steps) if self.steps else 1.0

    @property
    def head_density(self) -> float:
        """Share of heads computed, over all layers and steps; 1 before the first step."""
        return sum(self.heads) / (self.n_heads * len(self.heads) * self.steps) if self.steps else 1.0

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
    """Decodes on the CPU: what all decodings of one model with one set of predictors share."""

    def __init__(
        self,
        weights: Weights,
        predictors: Sequence[Predictor | None],
        cpu: Cpu,
        heads: Sequence[HeadPredictor | None] = (),
        kv: KvPolicy = KV_POLICIES["dense"],
    ) -> None:
        """Remember all of them; no weight is copied. No `heads` at all means every head in every layer.

        `kv` matters in layers that leave heads out.
        Raises UsageError for heads to be left out where the weights were not loaded by head.
        """
        self.weights = weights
        self.predictors = predictors
        self.heads = heads or (None,) * len(weights.layers)
        self.kv = kv
        self.cpu = cpu
        self.schedule = Schedule.of(predictors)
        is_by_head = all(isinstance(layer.out, HeadLinear) for layer in weights.layers)
        if not is_by_head and any(predictor is not None for predictor in self.heads):
            raise UsageError(
                "The plan leaves heads out, and these weights were not loaded by head; load them with it."
            )

    def start(self, cache: KvCache) -> "Decoding":
        """Begin to decode after the positions that `cache` holds, or will hold at the first step.

        Costs some 200 recorded calls, about a millisecond. The cache must not grow before the last step.
        """
        return Decoding(self, cache)


@final
class Decoding:
    """One sequence under way, token by token, counting as it goes.

    Same bits for any number of threads. Reads all attention and head weights, and of each MLP the predictor
    and the records of the selected neurons.
    """

    def __init__(self, decoder: Decoder, cache: KvCache) -> None:
        """Make the buffers and record a step."""
        self.decoder = decoder
        self.cache = cache
        weights, config = decoder.weights, decoder.weights.config
        n, n_heads = config.n_layers, config.n_kv_heads
        self.counts = DecodeCounts(config.n_neurons, n_heads, [0] * n, [0] * n, [0] * n, [0.0] * n)
        self._buffers = _Buffers(config)
        self._heads = [(np.arange(n_heads, dtype=np.int32), np.full(1, n_heads)) for _ in range(n)]
        self._blocks = cache.blocks
        leaves_out = [predictor is not None for predictor in decoder.heads]
        self._backlog = Backlog(weights, leaves_out, cache, decoder.kv, decoder.cpu)
        self._tape = decoder.cpu.tape()
        pairs = zip(weights.layers, decoder.predictors, strict=True)
        self._mlps = [WinnowedMlp(layer, predictor, self._tape) for layer, predictor in pairs]
        self._angles = _Angles(config)
        self._record()

    def step(self, token: int) -> Float32[np.ndarray, " V"]:
        """Return the logits after `token`, which stands at position ``cache.length``; the cache grows by one.

        The array is fresh. The cache must have room and `token` lie in the vocabulary: callers check.
        """
        buffers, position = self._buffers, self.cache.length
        self._embed(token, position)
        self._angles.write(position, buffers.cos, buffers.sin)
        buffers.position[0] = position
        self._backlog.begin(position, buffers.cos, buffers.sin)
        self._tape.run()
        self._backlog.end(position)
        self.cache.length += 1
        self._count(position)
        return buffers.logits.copy()

    def _embed(self, token: int, position: int) -> None:
        weights, buffers = self.decoder.weights, self._buffers
        buffers.embedded[:] = weights.embed.rows(torch.tensor([token]))[0].numpy()
        if weights.positions is not None:
            buffers.placed[:] = weights.positions[position].float().numpy()

    def _record(self) -> None:
        """Record the act: from the token's embedding to the logits."""
        weights, buffers, tape = self.decoder.weights, self._buffers, self._tape
        x, normed = buffers.x, buffers.normed
        if weights.project_in is not None:
            weights.project_in.apply(tape, buffers.embedded, x)
        if weights.positions is not None:
            tape.add(buffers.placed, x)
        for index, layer in enumerate(weights.layers):
            tape.clock(buffers.times[index])
            if weights.config.is_pre_norm:
                layer.attention_norm.apply(tape, x[None], normed[None])
                self._select(self.decoder.schedule.at_attention[index], normed)
                tape.add(self._attention(index, normed), x)
                layer.mlp_norm.apply(tape, x[None], normed[None])
                tape.add(self._mlp(index, normed), x)
            else:  # OPT-350m norms after the sum
                self._select(self.decoder.schedule.at_attention[index], x)
                tape.add(self._attention(index, x), x)
                layer.attention_norm.apply(tape, x[None], x[None])
                tape.add(self._mlp(index, x), x)
                layer.mlp_norm.apply(tape, x[None], x[None])
        tape.clock(buffers.times[-1])
        if weights.final_norm is not None:
            weights.final_norm.apply(tape, x[None], x[None])
        if weights.project_out is not None:
            weights.project_out.apply(tape, x, buffers.projected)
        weights.head.apply(tape, x if weights.project_out is None else buffers.projected, buffers.logits)

    def _attention(self, index: int, x: Vector) -> Vector:
        """Record attention over all positions up to this one, its key and value stored first."""
        layer, block, buffers, tape = (
            self.decoder.weights.layers[index],
            self._blocks[index],
            self._buffers,
            self._tape,
        )
        predictor, listed, n_q = self.decoder.heads[index], self._heads[index], buffers.q.size
        if predictor is None:
            layer.qkv.apply(tape, x, buffers.qkv)
        else:
            predictor.apply(tape, x, *listed)
            layer.qkv.part(0, n_q).apply_by_head(tape, x, listed, buffers.qkv[:n_q])
        self._turned(layer.q_norm, buffers.q)
        if index in self._backlog:
            self._backlog.record(tape, index, x, buffers.position, listed)
        else:
            if predictor is not None:
                layer.qkv.part(n_q, buffers.qkv.size).apply(tape, x, buffers.qkv[n_q:])
            self._turned(layer.k_norm, buffers.k)
            tape.append_kv(block, buffers.position, buffers.k, buffers.v)
        scale, heads = block.head_width**-0.5, None if predictor is None else listed
        tape.attend(buffers.q, block, buffers.position, layer.window or 0, scale, buffers.mixed, heads)
        if isinstance(layer.out, HeadLinear):
            layer.out.apply(tape, buffers.mixed.reshape(-1), listed, buffers.attended)
        else:
            layer.out.apply(tape, buffers.mixed.reshape(-1), buffers.attended)
        return buffers.attended

    def _turned(self, norm: RmsNorm | None, heads: Float32[np.ndarray, "_ E"]) -> None:
        """Record the norm of queries or keys, in models that have one, and their rotation."""
        if norm is not None:
            norm.apply(self._tape, heads, heads)
        if self.decoder.weights.config.rope is not None:
            self._tape.rotate(heads, self._buffers.cos, self._buffers.sin)

    def _select(self, layers: Sequence[int], view: Vector) -> None:
        """Record the predictors of `layers`, which read `view` and list the neurons to compute."""
        for index in layers:
            self._mlps[index].select(view)

    def _mlp(self, index: int, x: Vector) -> Vector:
        """Record the contribution of the neurons that the predictor selects; of all where there is none."""
        self._select(self.decoder.schedule.at_mlp[index], x)
        self._mlps[index].apply(x, self._buffers.mlp)
        return self._buffers.mlp

    def _count(self, position: int) -> None:
        """Add what the step that stood at `position` has read and waited for."""
        weights, counts = self.decoder.weights, self.counts
        times = self._buffers.times[:, 0].tolist()
        for index, (layer, mlp, block) in enumerate(
            zip(weights.layers, self._mlps, self._blocks, strict=True)
        ):
            n_heads, predictor = int(self._heads[index][1][0]), self.decoder.heads[index]
            seen = min(position + 1, layer.window or position + 1)
            cached_bytes = 2 * seen * n_heads * block.head_width * block.dtype.itemsize
            q_bytes = layer.qkv.n_bytes * self._buffers.q.size // self._buffers.qkv.size
            of_heads = (q_bytes + layer.out.n_bytes) * n_heads // block.n_kv_heads
            counts.heads[index] += n_heads
            counts.active[index] += mlp.n_active
            kv_bytes = self._backlog.n_bytes(index, layer.qkv.n_bytes - q_bytes)
            counts.n_bytes[index] += of_heads + kv_bytes + cached_bytes + mlp.n_bytes
            counts.n_bytes[index] += 0 if predictor is None else predictor.n_bytes
            counts.seconds[index] += times[index + 1] - times[index]
        counts.head_bytes += weights.head.n_bytes
        counts.steps += 1


class _Angles:
    """Cosines and sines of rotary positions, computed some hundred positions at a time."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._start = -1
        self._table: tuple[np.ndarray, np.ndarray] | None = None

    def write(self, position: int, cos: Vector, sin: Vector) -> None:
        """Write the angles of `position`; nothing where the model has none."""
        if self._config.rope is None:
            return
        start = position // ROTARY_POSITIONS * ROTARY_POSITIONS
        if self._table is None or start != self._start:
            table = rotary_table(self._config.rope, self._config.head_width, start, ROTARY_POSITIONS)
            self._start, self._table = start, (table[0].numpy(), table[1].numpy())
        cos[:], sin[:] = self._table[0][position - start], self._table[1][position - start]


class _Buffers:
    """Working arrays of one decode step, allocated once."""

    def __init__(self, config: ModelConfig) -> None:
        n_q, n_kv, _ = config.qkv_rows
        self.position = np.zeros(1, np.int64)
        self.times = np.zeros((config.n_layers + 1, 1))
        self.x = np.empty(config.width, np.float32)
        is_projected = config.embed_width != config.width
        self.embedded = np.empty(config.embed_width, np.float32) if is_projected else self.x
        self.placed = np.empty(config.width, np.float32)
        self.cos = np.empty(config.head_width // 2, np.float32)
        self.sin = np.empty(config.head_width // 2, np.float32)
        self.normed = np.empty(config.width, np.float32)
        self.qkv = np.empty(n_q + 2 * n_kv, np.float32)
        self.q = self.qkv[:n_q].reshape(config.n_heads, config.head_width)  # views of qkv
        self.k = self.qkv[n_q : n_q + n_kv].reshape(config.n_kv_heads, config.head_width)
        self.v = self.qkv[n_q + n_kv :].reshape(config.n_kv_heads, config.head_width)
        self.mixed = np.empty((config.n_heads, config.head_width), np.float32)
        self.attended = np.empty(config.width, np.float32)
        self.mlp = np.empty(config.width, np.float32)
        self.projected = np.empty(config.embed_width, np.float32)
        self.logits = np.empty(config.vocab_size, np.float32)
