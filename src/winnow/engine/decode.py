"""Decode: one token of each sequence through the model, computing only what it needs.   (floor 5 · engine)

    x = embedding of the token
    for each layer:
        heads = predictor(norm(x))         which heads to compute; all where there is none
        x += attention(norm(x), heads)     keys and values of every head are computed, or owed (cache.py)
        active = predictor(norm(x))        which neurons to compute: a low-rank guess, or their gates
        x += mlp(norm(x), active)          one contiguous record per active neuron
    logits = head(norm(x))

Up to eight sequences step together: a weight that several need is read once, and each has the bits it would
have alone. `model.py` defines the same act in plain torch. Here every line is one kernel call on buffers made
once, recorded on a tape when a decoding begins and run once per step. A predictor runs as soon as what it
reads is known, which may be before the layer's attention or in the layer below (Lookahead). A layer without a
predictor computes all its neurons.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float32

from winnow.base.errors import UsageError
from winnow.engine.cache import KV_POLICIES, Backlog, KvCache, KvPolicy
from winnow.engine.config import ModelConfig
from winnow.engine.counts import DecodeCounts, Meter
from winnow.engine.families import rotary_table
from winnow.engine.sparsity.plan import Plan
from winnow.engine.sparsity.predictor import HeadPredictor, Lookahead, Predictor
from winnow.engine.sparsity.sparse_mlp import Filler, WinnowedMlp
from winnow.engine.weights import HeadLinear, RmsNorm, Weights
from winnow.kernels import MOST_BATCH, Calls, Cpu, Listed, Lists, Matrix

Rows = Float32[np.ndarray, "B _"]  # D, or the width that the operand beside it gives
Half = Float32[np.ndarray, " half"]  # E/2
ROTARY_POSITIONS = 256  # whose angles are computed at once


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
class Act:
    """What one step computes, in the order above, but for attention, which is the caller's.

    With a tape as `calls` a run is recorded, with the kernels themselves it is made.
    """

    def __init__(
        self, weights: Weights, predictors: Sequence[Predictor | None], calls: Calls, batch: int
    ) -> None:
        """Make the buffers; no weight is copied."""
        self.weights = weights
        self.calls = calls
        self.schedule = Schedule.of(predictors)
        self.buffers = _Buffers(weights.config, batch)
        self.n_active = np.full((weights.config.n_layers, batch), weights.config.n_neurons)
        self._places = None if weights.positions is None else Matrix(weights.positions)
        layers = zip(weights.layers, predictors, self.n_active, strict=True)
        self.mlps = [WinnowedMlp(layer, predictor, calls, count) for layer, predictor, count in layers]

    def embed(self, cpu: Cpu, row: int, token: int, position: int) -> None:
        """Write the input of a sequence, at once: its token's embedding, its learned position's."""
        buffers = self.buffers
        cpu.unpack(self.weights.embed, token, buffers.embedded[row : row + 1])
        if self._places is not None:
            cpu.unpack(self._places, position, buffers.placed[row : row + 1])

    def run(self, attention: Callable[[int, Rows], Rows]) -> None:
        """Go from the tokens' embeddings to the logits; `attention` is given a layer and what it reads."""
        weights, buffers, calls = self.weights, self.buffers, self.calls
        x, normed = buffers.x, buffers.normed
        if weights.project_in is not None:
            weights.project_in.apply(calls, buffers.embedded, x)
        if self._places is not None:
            self._add(buffers.placed)
        for index, layer in enumerate(weights.layers):
            calls.clock(buffers.times[index])
            if weights.config.is_pre_norm:
                layer.attention_norm.apply(calls, x, normed)
                self._select(self.schedule.at_attention[index], normed)
                self._add(attention(index, normed))
                layer.mlp_norm.apply(calls, x, normed)
                self._add(self._mlp(index, normed))
            else:  # OPT-350m norms after the sum
                self._select(self.schedule.at_attention[index], x)
                self._add(attention(index, x))
                layer.attention_norm.apply(calls, x, x)
                self._add(self._mlp(index, x))
                layer.mlp_norm.apply(calls, x, x)
        calls.clock(buffers.times[-1])
        if weights.final_norm is not None:
            weights.final_norm.apply(calls, x, x)
        if weights.project_out is not None:
            weights.project_out.apply(calls, x, buffers.projected)
        weights.head.apply(calls, x if weights.project_out is None else buffers.projected, buffers.logits)

    def _add(self, rows: Rows) -> None:
        """Add `rows` to the residual stream."""
        self.calls.add(rows.reshape(-1), self.buffers.x.reshape(-1))

    def _select(self, layers: Sequence[int], view: Rows) -> None:
        """Run the predictors of `layers`, which read `view` and list the neurons to compute."""
        for index in layers:
            self.mlps[index].select(view)

    def _mlp(self, index: int, x: Rows) -> Rows:
        """Compute the contribution of the neurons that the predictor selects; of all where there is none."""
        self._select(self.schedule.at_mlp[index], x)
        self.mlps[index].apply(x, self.buffers.mlp)
        return self.buffers.mlp


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
        self.filler: Filler | None = None
        is_by_head = all(isinstance(layer.out, HeadLinear) for layer in weights.layers)
        if not is_by_head and any(predictor is not None for predictor in self.heads):
            raise UsageError(
                "The plan leaves heads out, and these weights were not loaded by head; load them with it."
            )

    def level(self, plan: Plan) -> None:
        """Let every step compute the same number of neurons in each layer from now on (`Filler`).

        Raises UsageError for a plan that leaves heads out, whose work it does not level, or that was not
        measured.
        """
        if plan.has_heads or len(plan.quality) != len(self.predictors):
            lacks = "leaves heads out" if plan.has_heads else "was not measured"
            raise UsageError(f"constant work was asked of a plan that {lacks}; take another, or none.")
        densities = [layer.density for layer in plan.quality]
        self.filler = Filler(densities, self.weights.config.n_neurons, self.cpu)

    def start(self, *caches: KvCache) -> "Decoding":
        """Begin to decode one sequence per cache, after what it holds, or will hold at the first step.

        Costs some 200 recorded calls, about a millisecond. A cache must not grow before the last step.
        Raises UsageError for no cache and for more than MOST_BATCH.
        """
        if not 1 <= len(caches) <= MOST_BATCH:
            raise UsageError(
                f"{len(caches)} sequences were to be decoded together, expected 1 to {MOST_BATCH}."
            )
        return Decoding(self, caches)


@final
class Decoding:
    """Sequences under way, a token of each at a time, counting as it goes.

    Same bits for any number of threads and whatever other sequences there are. Reads all attention and head
    weights, and of each MLP the predictor and the records of the neurons that any sequence selects.
    """

    def __init__(self, decoder: Decoder, caches: Sequence[KvCache]) -> None:
        """Make the buffers and record a step."""
        self.decoder = decoder
        self.caches = caches
        weights, config = decoder.weights, decoder.weights.config
        n, n_heads, batch = config.n_layers, config.n_kv_heads, len(caches)
        self._tape = decoder.cpu.tape()
        self._act = Act(weights, decoder.predictors, self._tape, batch)
        self._buffers = self._act.buffers
        self._n_heads = np.full((n, batch), n_heads)
        every = np.tile(np.arange(n_heads, dtype=np.int32), (batch, 1))
        self._heads: list[Lists] = [(every.copy(), self._n_heads[index]) for index in range(n)]
        self._blocks = [cache.blocks for cache in caches]
        leaves_out = [predictor is not None for predictor in decoder.heads]
        self._backlogs = [Backlog(weights, leaves_out, cache, decoder.kv, decoder.cpu) for cache in caches]
        self._meter = Meter(weights, caches, self._backlogs, decoder.heads, self._act.mlps)
        self._angles = [_Angles(config) for _ in caches]
        self._act.run(self._attention)

    @property
    def counts(self) -> DecodeCounts:
        """What the steps so far have selected, read and waited for."""
        return self._meter.counts()

    def step(self, *tokens: int) -> Float32[np.ndarray, "B V"]:
        """Return the logits after one token of each sequence; every cache grows by one.

        A sequence's token stands at position ``cache.length``. The array is fresh. Each cache must have room
        and each token lie in the vocabulary: callers check.
        """
        buffers, positions = self._buffers, [cache.length for cache in self.caches]
        for row, (position, angles) in enumerate(zip(positions, self._angles, strict=True)):
            self._act.embed(self.decoder.cpu, row, tokens[row], position)
            angles.write(position, buffers.cos[row], buffers.sin[row])
            self._backlogs[row].begin(position, buffers.cos[row], buffers.sin[row])
        buffers.positions[:] = positions
        self._tape.run()
        for cache, backlog, position in zip(self.caches, self._backlogs, positions, strict=True):
            backlog.end(position)
            cache.length += 1
        filler = self.decoder.filler
        n_active = self._act.n_active if filler is None else filler.fill(self._act.mlps, buffers.x)
        self._meter.add(buffers.positions, self._heads, self._n_heads, n_active, buffers.times)
        return buffers.logits.copy()

    def _attention(self, index: int, x: Rows) -> Rows:
        """Record attention over all positions up to this one, its key and value stored first."""
        layer, buffers, tape = self.decoder.weights.layers[index], self._buffers, self._tape
        predictor, listed = self.decoder.heads[index], self._heads[index]
        n_q, n_rows = buffers.apart.qkv.shape[1], layer.qkv.matrix.shape[0]
        if predictor is None:
            heads = buffers.together
            layer.qkv.apply(tape, x, heads.qkv)
        else:
            heads = buffers.apart
            predictor.apply(tape, x, *listed)
            layer.qkv.part(0, n_q).apply_by_head(tape, x, listed, heads.qkv)
            if index not in self._backlogs[0]:
                layer.qkv.part(n_q, n_rows).apply(tape, x, heads.kv)
        for row in range(len(self.caches)):
            chosen = listed[0][row], listed[1][row : row + 1]
            if index in self._backlogs[row]:
                self._backlogs[row].record(tape, index, x[row], buffers.positions[row : row + 1], chosen)
            else:
                self._remember(index, row, heads)
            self._attend(index, row, heads, None if predictor is None else chosen)
        mixed = buffers.mixed.reshape(len(self.caches), -1)
        if isinstance(layer.out, HeadLinear):
            layer.out.apply(tape, mixed, listed, buffers.attended)
        else:
            layer.out.apply(tape, mixed, buffers.attended)
        return buffers.attended

    def _remember(self, index: int, row: int, heads: "_Heads") -> None:
        """Record that one sequence's key and value are stored."""
        self._turn(self.decoder.weights.layers[index].k_norm, row, heads.k[row])
        position = self._buffers.positions[row : row + 1]
        self._tape.append_kv(self._blocks[row][index], position, heads.k[row], heads.v[row])

    def _attend(self, index: int, row: int, heads: "_Heads", chosen: Listed | None) -> None:
        """Record the attention of one sequence, with the listed kv heads where there is a list."""
        layer, block, buffers = self.decoder.weights.layers[index], self._blocks[row][index], self._buffers
        self._turn(layer.q_norm, row, heads.q[row])
        position, window, scale = buffers.positions[row : row + 1], layer.window or 0, block.head_width**-0.5
        self._tape.attend(heads.q[row], block, position, window, scale, buffers.mixed[row], chosen)

    def _turn(self, norm: RmsNorm | None, row: int, heads: Float32[np.ndarray, "_ E"]) -> None:
        """Record the norm of one sequence's queries or keys, in models that have one, and their rotation."""
        if norm is not None:
            norm.apply(self._tape, heads, heads)
        if self.decoder.weights.config.rope is not None:
            self._tape.rotate(heads, self._buffers.cos[row], self._buffers.sin[row])


class _Angles:
    """Cosines and sines of rotary positions, computed some hundred positions at a time."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._start = -1
        self._table: tuple[np.ndarray, np.ndarray] | None = None

    def write(self, position: int, cos: Half, sin: Half) -> None:
        """Write the angles of `position`; nothing where the model has none."""
        if self._config.rope is None:
            return
        start = position // ROTARY_POSITIONS * ROTARY_POSITIONS
        if self._table is None or start != self._start:
            table = rotary_table(self._config.rope, self._config.head_width, start, ROTARY_POSITIONS)
            self._start, self._table = start, (table[0].numpy(), table[1].numpy())
        cos[:], sin[:] = self._table[0][position - start], self._table[1][position - start]


class _Heads:
    """Queries, keys and values of each sequence, in the array or the two arrays that products write."""

    def __init__(self, config: ModelConfig, batch: int, is_together: bool) -> None:
        n_q, n_kv, _ = config.qkv_rows
        self.qkv = np.empty((batch, n_q + 2 * n_kv if is_together else n_q), np.float32)
        self.kv = self.qkv[:, n_q:] if is_together else np.empty((batch, 2 * n_kv), np.float32)
        self.q = self.qkv[:, :n_q].reshape(batch, config.n_heads, config.head_width)
        self.k = self.kv[:, :n_kv].reshape(batch, config.n_kv_heads, config.head_width)
        self.v = self.kv[:, n_kv:].reshape(batch, config.n_kv_heads, config.head_width)


class _Buffers:
    """Working arrays of one decode step, allocated once."""

    def __init__(self, config: ModelConfig, batch: int) -> None:
        self.positions = np.zeros(batch, np.int64)
        self.times = np.zeros((config.n_layers + 1, 1))
        self.x = np.empty((batch, config.width), np.float32)
        is_projected = config.embed_width != config.width
        self.embedded = np.empty((batch, config.embed_width), np.float32) if is_projected else self.x
        self.placed = np.empty((batch, config.width), np.float32)
        self.cos = np.empty((batch, config.head_width // 2), np.float32)
        self.sin = np.empty((batch, config.head_width // 2), np.float32)
        self.normed = np.empty((batch, config.width), np.float32)
        self.together = _Heads(config, batch, is_together=True)
        self.apart = _Heads(config, batch, is_together=False)
        self.mixed = np.empty((batch, config.n_heads, config.head_width), np.float32)
        self.attended = np.empty((batch, config.width), np.float32)
        self.mlp = np.empty((batch, config.width), np.float32)
        self.projected = np.empty((batch, config.embed_width), np.float32)
        self.logits = np.empty((batch, config.vocab_size), np.float32)
