"""Stream: prompts and steps whose attention is a streaming state.   (floor 5 · engine)

The act is that of decode.py and prefill.py; in the place of keys and values stands a state of constant size
(winnow.attention.streaming, in torch). Neurons are selected and computed by the kernels as ever. A state is
read by one torch thread, so that its bits do not depend on their number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.engine.context.options import StreamingContext
from winnow.engine.context.past import Angles, Past, angles_of, learned_position
from winnow.engine.counts import DecodeCounts
from winnow.engine.decode import Act, Decoder, Rows
from winnow.engine.families.rope import rotate
from winnow.engine.model import CHUNK
from winnow.engine.prefill import Prefill
from winnow.engine.weights import HeadLinear, Layer, RmsNorm


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """Let torch use `n_threads` inside the block and what it used before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@final
class Stream:
    """Reads and decodes sequences of any length with one model, its predictors and one budget.

    Memory beyond the weights does not grow with the sequence. While a sequence fits into the window the
    logits are those of exact attention to rounding; beyond, they are those of the states.
    """

    def __init__(self, prefill: Prefill, decoder: Decoder, context: StreamingContext) -> None:
        """Remember all of them; no weight is copied. Raises UsageError for what cannot stream."""
        context.check_fits(None, decoder.kv)
        self.kind = context.kind(decoder.weights.config)
        self.decoder = decoder
        self._products = prefill

    def start(self) -> Past:
        """Return the past of a sequence that has not begun."""
        return Past(self.decoder.weights.config, self.kind)

    def read(self, ids: Int64[Tensor, " T"], past: Past) -> Float32[np.ndarray, " V"]:
        """Return the logits after the last of the tokens `ids`, at least one, all in the vocabulary.

        Cutting a prompt into several reads changes nothing but rounding. Every weight is read once per 512
        tokens.
        """
        logits = np.empty(self.decoder.weights.config.vocab_size, np.float32)
        done = 0
        while done < len(ids):
            chunk = ids[done : done + CHUNK - past.length % CHUNK]
            done += len(chunk)
            self._products.head(self._hidden(chunk, past), logits[None])
        return logits

    def decode(self, past: Past, *others: Past) -> "StreamingDecoding":
        """Begin to decode after what `past` holds.

        Raises UsageError for several sequences at once and for constant work.
        """
        if self.decoder.filler is not None:
            raise UsageError(
                "Steps of a stream have no constant work; leave --constant-work or --context streaming out."
            )
        if others:
            raise UsageError(
                f"{1 + len(others)} sequences were to be streamed together, expected one; decode each alone."
            )
        return StreamingDecoding(self.decoder, past)

    def _hidden(self, ids: Int64[Tensor, " T"], past: Past) -> Float32[Tensor, "1 D"]:
        """Return the last row of the residual stream after the last layer and norm."""
        weights = self.decoder.weights
        config, start = weights.config, past.length
        x = weights.embed.rows(ids)
        if weights.project_in is not None:
            x = weights.project_in(x)
        if weights.positions is not None:
            at = [learned_position(config, position) for position in range(start, start + len(ids))]
            x = x + weights.positions[at].float()
        angles = angles_of(config, start, len(ids))
        for index, layer in enumerate(weights.layers):
            read = layer.attention_norm(x) if config.is_pre_norm else x
            x = x + self._attention(index, layer, read, past, angles)
            x = x[-1:] if index == config.n_layers - 1 else x
            x = x if config.is_pre_norm else layer.attention_norm(x)
            x = x + self._products.mlp(layer, layer.mlp_norm(x) if config.is_pre_norm else x)
            x = x if config.is_pre_norm else layer.mlp_norm(x)
        return x if weights.final_norm is None else weights.final_norm(x)

    def _attention(
        self, index: int, layer: Layer, x: Float32[Tensor, "T D"], past: Past, angles: Angles | None
    ) -> Float[Tensor, "T D"]:
        """Return the attention of a chunk, every query read: they decide which keys are heavy."""
        config = self.decoder.weights.config
        rows = self._products.rows(layer.qkv, x, 0, layer.qkv.matrix.shape[0])
        heads = rows.float().view(len(x), -1, config.head_width)
        q, k, v = heads.split([config.n_heads, config.n_kv_heads, config.n_kv_heads], dim=1)
        q, k = _placed(q, layer.q_norm, angles), _placed(k, layer.k_norm, angles)
        with torch_threads(1):
            q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
            mixed = past.states[index].step(q, k, v)
        return self._products.out(layer, mixed[0].transpose(0, 1).flatten(1)).float()


def _placed(x: Float32[Tensor, "T N E"], norm: RmsNorm | None, angles: Angles | None) -> Tensor:
    x = x if norm is None else norm(x)
    return x if angles is None else rotate(x, *angles)


@final
class StreamingDecoding:
    """One sequence under way, a token at a time, counting as it goes; see `Stream`."""

    def __init__(self, decoder: Decoder, past: Past) -> None:
        """Make the buffers; no weight is copied."""
        weights, config = decoder.weights, decoder.weights.config
        self.past = past
        self.counts = DecodeCounts(config.n_layers, config.n_neurons, config.n_kv_heads)
        self._cpu = decoder.cpu
        self._act = Act(weights, decoder.predictors, decoder.cpu, 1)
        self._qkv = np.empty((1, sum(config.qkv_rows)), np.float32)
        self._heads = np.split(
            self._qkv.reshape(-1, config.head_width), (config.n_heads, config.n_heads + config.n_kv_heads)
        )
        self._cos, self._sin = (np.empty(config.head_width // 2, np.float32) for _ in range(2))
        self._every = np.arange(config.n_kv_heads, dtype=np.int32)[None], np.array([config.n_kv_heads])
        states = [state.n_bytes for state in past.states]
        self._layer_bytes = np.array([layer.qkv.n_bytes + layer.out.n_bytes for layer in weights.layers])
        self._layer_bytes += states

    def step(self, *tokens: int) -> Float32[np.ndarray, "1 V"]:
        """Return the logits after one token, which lies in the vocabulary; the past grows by it."""
        config, position = self._act.weights.config, self.past.length
        (token,) = tokens
        self._act.embed(self._cpu, 0, token, learned_position(config, position))
        angles = angles_of(config, position, 1)
        if angles is not None:
            self._cos[:], self._sin[:] = (part[0].numpy() for part in angles)
        with torch_threads(1), torch.inference_mode():
            self._act.run(self._attention)
        self._count()
        return self._act.buffers.logits.copy()

    def _attention(self, index: int, x: Rows) -> Rows:
        layer, (q, k, v) = self._act.weights.layers[index], self._heads
        layer.qkv.apply(self._cpu, x, self._qkv)
        for heads, norm in ((q, layer.q_norm), (k, layer.k_norm)):
            if norm is not None:
                norm.apply(self._cpu, heads, heads)
            if self._act.weights.config.rope is not None:
                self._cpu.rotate(heads, self._cos, self._sin)
        q, k, v = (torch.from_numpy(part)[None, :, None] for part in (q, k, v))
        mixed = self.past.states[index].step(q, k, v)
        heard, attended = mixed.flatten(1).numpy(), self._act.buffers.attended
        if isinstance(layer.out, HeadLinear):
            layer.out.apply(self._cpu, heard, self._every, attended)
        else:
            layer.out.apply(self._cpu, heard, attended)
        return attended

    def _count(self) -> None:
        """Count a step, its states as read whole."""
        counts, act = self.counts, self._act
        n_active = act.n_active[:, 0]
        counts.active += n_active
        counts.heads += counts.n_heads
        counts.n_bytes += self._layer_bytes
        counts.n_bytes += [mlp.n_bytes(int(n)) for mlp, n in zip(act.mlps, n_active, strict=True)]
        counts.seconds += np.diff(act.buffers.times[:, 0])
        counts.head_bytes += act.weights.head.n_bytes
        counts.steps += 1
