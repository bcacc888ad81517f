"""Context: how a token's time grows with the tokens before it, dense and sparse.

    python -m benchmarks.context

A step reads the weights, which do not grow, and the keys and values of the heads it computes. So the growth
of its bytes over the bandwidth is the least its time can grow by, and the sparse engine's is the dense
one's times the head density. One step at each length in turn, and the growth is that within a round: the
machine's bandwidth changes from minute to minute, and between rounds by more than a context costs.
"""

import statistics
import time
from dataclasses import dataclass, field

import torch
from benchmarks.recorded import THREADS, machine, record

from winnow.base.rng import generator
from winnow.engine import KvCache, Prefill
from winnow.engine.decode import Decoder
from winnow.engine.synthetic import synthetic_shape
from winnow.kernels import open_cpu, read_bandwidth

SHAPE, DTYPE, DENSITY, HEAD_DENSITY = "opt-1.3b", torch.bfloat16, 0.10, 0.5
CONTEXTS = (128, 512, 1024, 2000)
ROUNDS, ROUNDS_PER_PROBE = 96, 8


@dataclass
class Steps:
    """Of one engine after one context: seconds and bytes of each round's step, and the heads it computed."""

    engine: str
    n_read: int
    seconds: list[float] = field(default_factory=list)
    n_bytes: list[float] = field(default_factory=list)
    head_density: float = 1.0


def timed(decoders: dict[str, Decoder], read: KvCache, tokens: list[int], probes: list[float]) -> list[Steps]:
    """Decode each of `tokens` after every context and with every engine, in turns."""
    cases = [(Steps(name, n), decoder.start(read)) for n in CONTEXTS for name, decoder in decoders.items()]
    for number, token in enumerate(tokens):
        if number % ROUNDS_PER_PROBE == 0:
            probes.append(read_bandwidth(open_cpu(THREADS), seconds=0.1) / 1e9)
        for steps, decoding in cases:
            read.length = steps.n_read  # its own step is written over by the next
            before = decoding.counts.bytes_per_token * number
            started = time.perf_counter()
            decoding.step(token)
            steps.seconds.append(time.perf_counter() - started)
            steps.n_bytes.append(decoding.counts.bytes_per_token * (number + 1) - before)
            steps.head_density = decoding.counts.head_density
    return [steps for steps, _ in cases]


def grown(taken: list[Steps], probes: list[float]) -> dict:
    """Return what each engine reads and takes, and its growth since the shortest context."""
    first = {steps.engine: steps for steps in reversed(taken)}
    gb_per_s = statistics.median(probes)
    rows = []
    for steps in taken:
        start = first[steps.engine]
        n_bytes = statistics.median(map(float.__sub__, steps.n_bytes, start.n_bytes))
        rows.append(
            {
                "engine": steps.engine,
                "shape": SHAPE,
                "dtype": "bf16",
                "head_density": steps.head_density,
                "prompt_tokens": steps.n_read,
                "ms_per_token": 1e3 * statistics.median(steps.seconds),
                "bytes_per_token": statistics.median(steps.n_bytes),
                "kv_growth_bytes": n_bytes,
                "growth_ms": 1e3 * statistics.median(map(float.__sub__, steps.seconds, start.seconds)),
                "kv_growth_limit_ms": n_bytes / gb_per_s / 1e6,
            }
        )
    lengths = sorted({steps.n_read for steps in taken})[1:]
    return {
        "probed_gb_per_s": gb_per_s,
        "probed_gb_per_s_min": min(probes),
        "probed_gb_per_s_max": max(probes),
        "rounds": len(taken[0].seconds),
        "rows": rows,
        "compared": [_compared(rows, n_read) for n_read in lengths],
    }


def _compared(rows: list[dict], n_read: int) -> dict:
    dense, sparse = (row for row in rows if row["prompt_tokens"] == n_read)
    return {
        "prompt_tokens": n_read,
        "head_density": sparse["head_density"],
        "bytes_growth_ratio": sparse["kv_growth_bytes"] / dense["kv_growth_bytes"],
        "time_growth_ratio": sparse["growth_ms"] / dense["growth_ms"],
    }


def main() -> None:
    """Write context.json."""
    model = synthetic_shape(SHAPE, DTYPE, DENSITY, seed=0)
    weights, heads = model.by_head(HEAD_DENSITY)
    cpu, vocab_size = open_cpu(THREADS), model.weights.config.vocab_size
    decoders = {
        "winnow-dense": Decoder(model.weights, (None,) * model.weights.config.n_layers, cpu),
        "winnow-sparse": Decoder(weights, model.predictors, cpu, heads),
    }
    tokens = torch.randint(vocab_size, (max(CONTEXTS) + ROUNDS,), generator=generator(1))
    cache = KvCache(model.weights.config, max(CONTEXTS) + 1, model.weights.cache_dtype)
    with torch.inference_mode():
        Prefill(model.weights, cpu).read(tokens[: max(CONTEXTS)], cache)
    probes: list[float] = []
    taken = timed(decoders, cache, tokens[max(CONTEXTS) :].tolist(), probes)
    record("context", {"machine": machine(), **grown(taken, probes)})


if __name__ == "__main__":
    main()
