"""Runners: one turn of one engine, prompt and answer, timed alike for all.   (floor 5 · engine)"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, final, runtime_checkable

import torch

from winnow.engine.cache import KV_POLICIES, KvCache, KvPolicy
from winnow.engine.decode import Decoder
from winnow.engine.generate import DTYPES, torch_threads
from winnow.engine.prefill import Prefill
from winnow.engine.sparsity.predictor import HeadPredictor, Predictor
from winnow.engine.weights import Weights
from winnow.kernels import Cpu

PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}


def precision(weights: Weights) -> str:
    """Return in what the layers are held, and the map to logits where that is something else."""
    layers, head = (PRECISIONS[dtype] for dtype in (weights.dtype, weights.head.matrix.dtype))
    return layers if head == layers else f"{layers}, {head} head"


@dataclass(frozen=True)
class Turn:
    """One prompt read and one answer decoded greedily, the end token being a token like any other.

    `steps_s` are the seconds of each token but the first, which the prompt pays for.
    """

    ttft_s: float
    steps_s: tuple[float, ...]
    token_ids: tuple[int, ...]
    mlp_density: float
    bytes_per_token: float | int
    head_density: float = 1.0

    @property
    def tokens_per_second(self) -> float:
        """Decode speed by the median step."""
        return 1 / statistics.median(self.steps_s)

    @property
    def mean_tokens_per_second(self) -> float:
        """Decode speed by all steps, held up or not."""
        return 1 / statistics.mean(self.steps_s)


def turn_of(
    started_s: float,
    told: Sequence[tuple[float, int]],
    *,
    bytes_per_token: float | int,
    mlp_density: float = 1.0,
    head_density: float = 1.0,
) -> Turn:
    """Return the turn that began at `started_s` and told each token at its time."""
    times_s = [told_s for told_s, _ in told]
    return Turn(
        ttft_s=times_s[0] - started_s,
        steps_s=tuple(after_s - before_s for before_s, after_s in pairwise(times_s)),
        token_ids=tuple(token for _, token in told),
        mlp_density=mlp_density,
        bytes_per_token=bytes_per_token,
        head_density=head_density,
    )


@runtime_checkable
class Runner(Protocol):
    """What a race needs of an engine."""

    @property
    def name(self) -> str:
        """The engine's name in the report."""
        ...

    @property
    def dtype(self) -> str:
        """In which it holds the weights: fp32, bf16, int8, int4 or a name of its own."""
        ...

    def run(self, prompt: Sequence[int], n_tokens: int) -> Turn:
        """Read `prompt`, decode `n_tokens` greedily from an empty cache."""
        ...


@final
class WinnowRunner:
    """Winnow's own engine; without predictors it is the dense one."""

    def __init__(
        self,
        weights: Weights,
        predictors: Sequence[Predictor | None] | None,
        cpu: Cpu,
        vocab_size: int,
        heads: Sequence[HeadPredictor | None] = (),
        kv: KvPolicy = KV_POLICIES["dense"],
    ) -> None:
        self.name = "winnow-dense" if predictors is None else "winnow-sparse"
        self.dtype = precision(weights)
        self.weights = weights
        self.cpu = cpu
        self.vocab_size = vocab_size
        layers = predictors or (None,) * weights.config.n_layers
        self.decoder = Decoder(weights, layers, cpu, heads, kv)
        self.prefill = Prefill(weights, cpu)

    def run(self, prompt: Sequence[int], n_tokens: int) -> Turn:
        """Read `prompt`, decode `n_tokens` greedily from an empty cache."""
        cache = KvCache(self.weights.config, len(prompt) + n_tokens, self.weights.cache_dtype)
        started_s = time.perf_counter()
        decoding = self.decoder.start(cache)
        with torch_threads(self.cpu.threads), torch.inference_mode():
            logits = self.prefill.read(torch.tensor(list(prompt)), cache)
        token = int(logits[: self.vocab_size].argmax())
        told = [(time.perf_counter(), token)]
        for _ in range(n_tokens - 1):
            token = int(decoding.step(token)[0][: self.vocab_size].argmax())
            told.append((time.perf_counter(), token))
        counts = decoding.counts
        return turn_of(
            started_s,
            told,
            bytes_per_token=counts.bytes_per_token,
            mlp_density=counts.mlp_density,
            head_density=counts.head_density,
        )
