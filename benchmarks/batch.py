"""Batch: what sequences decoded together gain, by density and precision.

    python -m benchmarks.batch

Random models of the opt-1.3b shape, every sequence with its own prompt and tokens. One step of each engine
and batch in turn, so that all meet the same states of the machine; a gain is that within a round. A token's
neurons are its own: random weights share fewer of them between sequences than text does, so the union is the
widest it can be.
"""

import statistics
import time
from dataclasses import dataclass, field

import torch
from benchmarks.recorded import THREADS, machine, record

from winnow.engine import KvCache, Prefill
from winnow.engine.decode import Decoder
from winnow.engine.synthetic import synthetic_shape
from winnow.kernels import int4, open_cpu, read_bandwidth

SHAPE, DENSITY = "opt-1.3b", 0.1
BATCHES = (1, 2, 4, 8)
PROMPT_TOKENS, ROUNDS, ROUNDS_PER_PROBE = 32, 48, 8
DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8, "int4": int4}


@dataclass
class Steps:
    """Of one engine and batch: the seconds of each round's step, and the mean of its bytes and density."""

    engine: str
    batch: int
    seconds: list[float] = field(default_factory=list)
    n_bytes: float = 0.0
    mlp_density: float = 1.0


def timed(
    decoders: dict[str, Decoder], caches: list[KvCache], tokens: list[list[int]], probes: list[float]
) -> list[Steps]:
    """Decode each row of `tokens` with every engine and batch, in turns."""
    cases = [
        (Steps(name, batch), decoder.start(*caches[:batch]))
        for batch in BATCHES
        for name, decoder in decoders.items()
    ]
    for number, row in enumerate(tokens):
        if number % ROUNDS_PER_PROBE == 0:
            probes.append(read_bandwidth(open_cpu(THREADS), seconds=0.1) / 1e9)
        for steps, decoding in cases:
            for cache in caches:
                cache.length = PROMPT_TOKENS  # a step is written over by the next
            started = time.perf_counter()
            decoding.step(*row[: steps.batch])
            steps.seconds.append(time.perf_counter() - started)
    for steps, decoding in cases:
        steps.n_bytes = decoding.counts.bytes_per_token * steps.batch
        steps.mlp_density = decoding.counts.mlp_density
    return [steps for steps, _ in cases]


def gained(name: str, taken: list[Steps]) -> list[dict]:
    """Return one row per engine and batch."""
    alone = {steps.engine: steps.seconds for steps in taken if steps.batch == 1}
    return [
        {
            "engine": steps.engine,
            "dtype": name,
            "batch": steps.batch,
            "tokens_per_second": steps.batch / statistics.median(steps.seconds),
            "gain": statistics.median(
                steps.batch * one / all_ for one, all_ in zip(alone[steps.engine], steps.seconds, strict=True)
            ),
            "bytes_per_step": steps.n_bytes,
            "mlp_density": steps.mlp_density,
        }
        for steps in taken
    ]


def rows(name: str, dtype: torch.dtype, probes: list[float]) -> list[dict]:
    """Return the rows of one precision."""
    model = synthetic_shape(SHAPE, dtype, DENSITY, seed=0)
    config, cpu = model.weights.config, open_cpu(THREADS)
    decoders = {
        "winnow-dense": Decoder(model.weights, (None,) * config.n_layers, cpu),
        "winnow-sparse": Decoder(model.weights, model.predictors, cpu),
    }
    generator = torch.Generator().manual_seed(1)
    size = (max(BATCHES), PROMPT_TOKENS)
    caches = [KvCache(config, PROMPT_TOKENS + 1, model.weights.cache_dtype) for _ in range(max(BATCHES))]
    with torch.inference_mode():
        for prompt, cache in zip(
            torch.randint(config.vocab_size, size, generator=generator), caches, strict=True
        ):
            Prefill(model.weights, cpu).read(prompt, cache)
    tokens = torch.randint(config.vocab_size, (ROUNDS, max(BATCHES)), generator=generator)
    return gained(name, timed(decoders, caches, tokens.tolist(), probes))


def main() -> None:
    """Write batch.json."""
    probes: list[float] = []
    found = [row for name, dtype in DTYPES.items() for row in rows(name, dtype, probes)]
    probed = {"probed_gb_per_s": statistics.median(probes), "probed_gb_per_s_min": min(probes)}
    record("batch", {"machine": machine(), "shape": SHAPE, "rounds": ROUNDS, **probed, "rows": found})


if __name__ == "__main__":
    main()
