"""Generate: a model, its tokenizer and its plan become text.   (floor 5 · engine)"""

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from winnow.base.errors import ModelError, ResourceError, UsageError
from winnow.engine.cache import KV_POLICIES, KvPolicy
from winnow.engine.checkpoint import Checkpoint
from winnow.engine.context import (
    CONTEXTS,
    Session,
    Stream,
    StreamingContext,
    StreamingDecoding,
    torch_threads,
)
from winnow.engine.convert import Form, open_weights
from winnow.engine.counts import DecodeCounts
from winnow.engine.decode import Decoder, Decoding
from winnow.engine.prefill import Prefill
from winnow.engine.sampling import SamplingOptions, pick
from winnow.engine.sparsity import Plan, find_plan, open_plan
from winnow.engine.tokenizer import CertainText, Tokenizer
from winnow.engine.weights import DTYPES, Weights
from winnow.kernels import open_cpu

# Per position. No tokenizer packs text this densely, and a text beyond it takes seconds to cut into tokens.
MOST_CHARACTERS = 1024
KV_DTYPES = {name: DTYPES[name] for name in ("bf16", "fp32", "int8")}  # of keys and values


@dataclass(frozen=True)
class GenerateOptions:
    """What one request asks for, beside its prompt."""

    max_tokens: int = 64
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False

    def __post_init__(self) -> None:
        """Refuse lengths and stop strings that mean nothing."""
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; expected at least 1.")
        if any(not s for s in self.stop):
            raise UsageError("A stop string is empty; expected at least one character.")


@dataclass(frozen=True)
class Piece:
    """One token and the text that became certain with it, perhaps none."""

    text: str
    token_id: int
    logprob: float | None
    finish_reason: str | None = None


@dataclass(frozen=True)
class Stats:
    """What a generation took. Decode speed leaves the prompt and the first token out.

    Of the prompt's tokens, `read_tokens` had to be read; a session's cache held the others.
    """

    prompt_tokens: int
    read_tokens: int
    tokens_per_second: float
    ttft_s: float
    mlp_density: float
    head_density: float
    bytes_per_token: float | int
    counts: DecodeCounts


@dataclass(frozen=True)
class Completion:
    """A finished generation; `finish_reason` is "stop" or "length"."""

    text: str
    token_ids: list[int]
    logprobs: list[float] | None
    finish_reason: str
    prompt_tokens: int
    stats: Stats


class Engine:
    """A loaded model that generates text.

    The same prompt, options and seed give the same tokens for any number of threads. With a plan, the tokens
    after the first are computed from selected neurons only; the prompt is always read densely. With a
    `context` a sequence may be longer than the model's positions: see `StreamingContext`.
    """

    def __init__(
        self,
        weights: Weights,
        tokenizer: Tokenizer,
        plan: Plan | None,
        threads: int,
        kv: KvPolicy = KV_POLICIES["dense"],
        context: StreamingContext | None = None,
        constant_work: bool = False,
    ) -> None:
        self.weights = weights
        self.kv = kv
        self.context = context
        self.constant_work = constant_work
        self.tokenizer = tokenizer
        self.cpu = open_cpu(threads)
        self.prefill = Prefill(weights, self.cpu)
        self.use_plan(plan)
        self.last_stats: Stats | None = None

    def use_plan(self, plan: Plan | None) -> None:
        """Decode with `plan` from now on, None for every neuron; no weight is copied."""
        if self.context is not None:
            self.context.check_fits(plan, self.kv)
        self.plan = plan
        layers = plan.layers if plan else (None,) * self.weights.config.n_layers
        self.decoder = Decoder(self.weights, layers, self.cpu, plan.heads if plan else (), self.kv)
        if self.constant_work and plan is not None:  # dense, it is constant
            self.decoder.level(plan)
        self.streaming = None if self.context is None else Stream(self.prefill, self.decoder, self.context)

    def generate(  # noqa: PLR0913 (a public verb: the names its users expect)
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        logprobs: bool = False,
        seed: int = 0,
    ) -> Completion:
        """Continue `prompt` (text, or token ids) by at most `max_tokens` tokens.

        Temperature 0 takes the likeliest token. A stop string ends the text before itself. `ignore_eos`
        goes on past the end token, which stays allowed. Raises UsageError for a prompt that does not fit
        the model's context.
        """
        sampling = SamplingOptions(
            temperature, top_k, top_p, min_p, repetition_penalty, dict(logit_bias or {}), seed
        )
        options = GenerateOptions(max_tokens, sampling, tuple(stop), ignore_eos, logprobs)
        pieces = list(self.run(prompt, options))
        assert self.last_stats is not None
        return Completion(
            text="".join(piece.text for piece in pieces),
            token_ids=[piece.token_id for piece in pieces],
            logprobs=[p.logprob for p in pieces if p.logprob is not None] if logprobs else None,
            finish_reason=pieces[-1].finish_reason or "length",
            prompt_tokens=self.last_stats.prompt_tokens,
            stats=self.last_stats,
        )

    def stream(  # noqa: PLR0913 (the same names as generate)
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        logprobs: bool = False,
        seed: int = 0,
    ) -> Iterator[Piece]:
        """Yield what `generate` returns, piece by piece; `last_stats` is set when the last one is out."""
        sampling = SamplingOptions(
            temperature, top_k, top_p, min_p, repetition_penalty, dict(logit_bias or {}), seed
        )
        return self.run(prompt, GenerateOptions(max_tokens, sampling, tuple(stop), ignore_eos, logprobs))

    def run(
        self, prompt: str | Sequence[int], options: GenerateOptions, session: Session | None = None
    ) -> Iterator[Piece]:
        """Yield pieces for one request; `generate` and `stream` are this with the options spelled out.

        A `session` keeps the cache for the next request; without one it is dropped at the end. Raises
        UsageError for one where the context is streaming: what was sent on cannot be taken back.
        """
        if session is not None and self.streaming is not None:
            raise UsageError(
                "A session keeps all keys; it cannot go with --context streaming. Leave one out."
            )
        ids = self._prompt_ids(prompt, options)
        return self._run(ids, options, session or Session(self.weights))

    def _prompt_ids(self, prompt: str | Sequence[int], options: GenerateOptions) -> list[int]:
        config = self.weights.config
        is_bounded = self.streaming is None
        if isinstance(prompt, str) and is_bounded and len(prompt) > MOST_CHARACTERS * config.n_positions:
            raise UsageError(
                f"The prompt has {len(prompt)} characters, the model {config.n_positions} positions; "
                "shorten it."
            )
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise UsageError("The prompt holds no tokens; expected at least one. Give some text.")
        wrong = [i for i in ids if not 0 <= i < config.vocab_size]
        if wrong:
            raise UsageError(f"Token id {wrong[0]} is outside the vocabulary, 0 to {config.vocab_size - 1}.")
        outside = [t for t in options.sampling.logit_bias if not 0 <= t < config.vocab_size]
        if outside:
            raise UsageError(f"logit_bias names token {outside[0]}; expected 0 to {config.vocab_size - 1}.")
        needed = len(ids) + options.max_tokens
        if is_bounded and needed > config.n_positions:
            raise UsageError(
                f"Prompt and answer need {len(ids)} + {options.max_tokens} = {needed} tokens, the model has "
                f"{config.n_positions} positions; shorten the prompt, lower max_tokens or take --context "
                "streaming."
            )
        return ids

    def _run(self, ids: list[int], options: GenerateOptions, session: Session) -> Iterator[Piece]:
        started_s = time.perf_counter()
        text = CertainText(self.tokenizer, options.stop)
        with torch_threads(self.cpu.threads), torch.inference_mode():
            decoding, logits = self._begun(ids, len(ids) + options.max_tokens, session)
        history = session.tokens
        first_s = decode_s = 0.0
        for step in range(options.max_tokens):
            if step:
                before_s = time.perf_counter()
                logits = decoding.step(history[-1])[0]
                decode_s += time.perf_counter() - before_s
            else:
                first_s = time.perf_counter() - started_s
            token = self._pick(logits, options, step, history)
            history.append(token)
            ends = token in self.weights.config.eos_ids and not options.ignore_eos
            shown = "" if ends else text.push(token)
            last = ends or text.stopped or step + 1 == options.max_tokens
            reason = ("stop" if ends or text.stopped else "length") if last else None
            if last:
                shown += text.flush()
                self.last_stats = self._stats(session, len(ids), (first_s, decode_s), decoding.counts)
            yield Piece(shown, token, _logprob(logits, token) if options.logprobs else None, reason)
            if last:
                return

    def _begun(
        self, ids: list[int], n_tokens: int, session: Session
    ) -> tuple[Decoding | StreamingDecoding, np.ndarray]:
        """Read the prompt; return what goes on from it, and the logits after it."""
        if self.streaming is not None:
            session.tokens, session.n_read = list(ids), len(ids)
            past = self.streaming.start()
            return self.streaming.decode(past), self.streaming.read(torch.tensor(ids), past)
        cache = session.begin(ids, n_tokens)
        decoding = self.decoder.start(cache)
        return decoding, self.prefill.read(torch.tensor(ids[cache.length :]), cache)

    def _pick(self, logits: np.ndarray, options: GenerateOptions, step: int, history: list[int]) -> int:
        logits[self.tokenizer.vocab_size :] = -np.inf  # rows of the embedding that no token uses
        if not np.isfinite(logits[: self.tokenizer.vocab_size].max()):  # the largest is NaN if any is
            raise ModelError(
                "The model's output holds NaN or infinity, so do its weights; --check-tensors says where."
            )
        return pick(logits, options.sampling, step, history)

    def _stats(
        self, session: Session, prompt_tokens: int, waited_s: tuple[float, float], counts: DecodeCounts
    ) -> Stats:
        first_s, decode_s = waited_s
        return Stats(
            prompt_tokens=prompt_tokens,
            read_tokens=session.n_read,
            tokens_per_second=counts.steps / decode_s if decode_s > 0 else 0.0,
            ttft_s=first_s,
            mlp_density=counts.mlp_density,
            head_density=counts.head_density,
            bytes_per_token=counts.bytes_per_token,
            counts=counts,
        )


def _logprob(logits: np.ndarray, token: int) -> float:
    shifted = logits.astype(np.float64) - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum()))


def load(  # noqa: PLR0913 -- a public verb, whose options stand in the call
    path: str | Path | None = None,
    *,
    plan: str | Path | None = "auto",
    dtype: str = "bf16",
    device: str = "cpu",
    threads: int | None = None,
    offline: bool = False,
    kv: str = "dense",
    head_dtype: str | None = None,
    context: str | StreamingContext = "exact",
    constant_work: bool = False,
    kv_dtype: str | None = None,
    packed: str | Path | None = "auto",
) -> Engine:
    """Load a checkpoint directory, bundled name or hub id (left out: pico) and return an Engine.

    `plan`: "auto" takes ``winnow-plan.safetensors`` beside the weights if it is there; a path names another;
    None runs dense. `dtype` is fp32, bf16, int8 or int4, `head_dtype` that of the map to logits, if another.
    `threads` defaults to the processors this process may use.
    `kv` matters to plans that leave heads out: "lazy" computes a head's keys and values when it is selected.
    `kv_dtype`, of keys and values, is bf16, fp32 or int8 (left out: `dtype`, and bf16 beside int8 and int4).
    `context`: "exact" keeps every key and value, up to the model's positions; "streaming", or a
    `StreamingContext` with its budget, goes on without end in constant memory, with a plan or without.
    `constant_work` computes as many neurons in every step, so that its time tells less of the text; same
    tokens, slower, and not with a stream.
    `packed`: "auto" reads the weights that ``winnow convert --pack`` left beside the model, if they fit it; a
    path names another such file; None packs the weights now. Same bits either way.
    Raises ModelError for a missing or broken model or plan, ResourceError for a device this machine lacks
    and, before a weight is read, for more memory than is free.
    """
    _check_one_of("dtype", dtype, DTYPES)
    _check_one_of("head_dtype", dtype if head_dtype is None else head_dtype, DTYPES)
    _check_one_of("kv", kv, KV_POLICIES)
    if kv_dtype is not None:
        _check_one_of("kv_dtype", kv_dtype, KV_DTYPES)
    if isinstance(context, str):
        _check_one_of("context", context, CONTEXTS)
    streams = CONTEXTS[context] if isinstance(context, str) else context
    if device != "cpu":
        raise ResourceError(f"device is {device!r}; this version runs on the CPU. Use device='cpu'.")
    n_threads = len(os.sched_getaffinity(0)) if threads is None else threads
    if n_threads < 1:
        raise UsageError(f"threads is {n_threads}; expected at least 1.")
    checkpoint = Checkpoint.open("pico" if path is None else path, offline=offline)
    tokenizer = Tokenizer.open(checkpoint.directory)
    tokenizer.check_fits(checkpoint.config.vocab_size)
    plan_path = find_plan(checkpoint.directory) if plan == "auto" else plan
    opened = None
    if plan_path:
        opened = open_plan(Path(plan_path), checkpoint.config, checkpoint.content_hash(), dtype)
    if streams is not None and constant_work:
        raise UsageError("steps of a stream have no constant work; expected one of the two. Leave one out.")
    if streams is not None:
        streams.check_fits(opened, KV_POLICIES[kv], kv_dtype)
        streams.kind(checkpoint.config)
    # Last, as it is the longest: what is small has been found good by now.
    form = Form(dtype, head_dtype or dtype, opened is not None and opened.has_heads)
    weights = open_weights(checkpoint, form, packed)
    weights = replace(weights, kv_dtype=None if kv_dtype is None else KV_DTYPES[kv_dtype])
    return Engine(weights, tokenizer, opened, n_threads, KV_POLICIES[kv], streams, constant_work)


def _check_one_of(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UsageError(f"{name} is {value!r}; expected one of {', '.join(known)}.")
