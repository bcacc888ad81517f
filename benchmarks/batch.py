"""Batch: what sequences decoded together gain, by density and precision.

    python -m benchmarks.batch

Random models of the opt-1.3b shape, every sequence with its own prompt, all batches of one precision in one
process and interleaved. A token's neurons are its own: random weights share fewer of them between sequences
than text does, so the union is the widest it can be.
"""

import statistics
import time

import torch
from benchmarks.recorded import THREADS, machine, record

from winnow.engine import KvCache, Prefill
from winnow.engine.decode import Decoder
from winnow.engine.synthetic import synthetic_shape
from winnow.kernels import int4, open_cpu

SHAPE, DENSITY = "opt-1.3b", 0.1
BATCHES = (1, 2, 4, 8)
PROMPT_TOKENS, STEPS, REPEATS = 32, 12, 3
DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8, "int4": int4}


def timed(decoder: Decoder, prompts: list[torch.Tensor]) -> tuple[float, float, float]:
    """Return tokens per second of all sequences together, bytes per step, and the share of records read."""
    weights = decoder.weights
    caches = [KvCache(weights.config, PROMPT_TOKENS + STEPS + 1, weights.cache_dtype) for _ in prompts]
    reader = Prefill(weights, decoder.cpu)
    with torch.inference_mode():
        tokens = [
            int(reader.read(prompt, cache).argmax()) for prompt, cache in zip(prompts, caches, strict=True)
        ]
    decoding = decoder.start(*caches)
    tokens = decoding.step(*tokens).argmax(-1).tolist()
    started = time.perf_counter()
    for _ in range(STEPS):
        tokens = decoding.step(*tokens).argmax(-1).tolist()
    seconds = time.perf_counter() - started
    per_step = decoding.counts.bytes_per_token * len(prompts)
    return len(prompts) * STEPS / seconds, per_step, decoding.counts.mlp_density


def rows(name: str, dtype: torch.dtype) -> list[dict]:
    """Return one row per engine and batch."""
    model = synthetic_shape(SHAPE, dtype, DENSITY, seed=0)
    cpu, layers = open_cpu(THREADS), (None,) * model.weights.config.n_layers
    engines = {
        "winnow-dense": Decoder(model.weights, layers, cpu),
        "winnow-sparse": Decoder(model.weights, model.predictors, cpu),
    }
    generator = torch.Generator().manual_seed(1)
    size = (max(BATCHES), PROMPT_TOKENS)
    prompts = list(torch.randint(0, model.weights.config.vocab_size, size, generator=generator))
    taken: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for _ in range(REPEATS):
        for engine, decoder in engines.items():
            for batch in BATCHES:
                taken.setdefault((engine, batch), []).append(timed(decoder, prompts[:batch]))
    found = []
    for (engine, batch), runs in taken.items():
        speed = statistics.median(run[0] for run in runs)
        found.append(
            {
                "engine": engine,
                "dtype": name,
                "batch": batch,
                "tokens_per_second": speed,
                "tokens_per_second_min": min(run[0] for run in runs),
                "tokens_per_second_max": max(run[0] for run in runs),
                "gain": speed / statistics.median(run[0] for run in taken[engine, 1]),
                "bytes_per_step": statistics.median(run[1] for run in runs),
                "mlp_density": statistics.median(run[2] for run in runs),
            }
        )
    return found


def main() -> None:
    """Write batch.json."""
    result: dict = {"machine": machine(), "shape": SHAPE, "rows": []}
    for name, dtype in DTYPES.items():
        result["rows"] += rows(name, dtype)
    record("batch", result)


if __name__ == "__main__":
    main()
