"""Lazy KV: what a window of late keys and values saves, turn by turn.

    python -m benchmarks.lazy_kv

The shape of OPT-1.3B in bf16, a tenth of the neurons, half of the heads, drawn anew for each token. Every
policy decodes the same tokens from the same cache, in turns; a ratio is that of two turns beside each other.
A step's longest time says whether waiting heads come in crowds.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import suppress

import torch
from benchmarks.recorded import THREADS, machine, record

from winnow.base.rng import generator
from winnow.engine import KvCache
from winnow.engine.cache import KvPolicy
from winnow.engine.decode import Decoder, Decoding
from winnow.engine.model import prefill
from winnow.engine.synthetic import synthetic_shape
from winnow.kernels import open_cpu, read_bandwidth

SHAPE, DENSITY, HEAD_DENSITY = "opt-1.3b", 0.1, 0.5
WINDOWS = (1, 2, 4, 8, 16)  # 1 is dense
PROMPT_TOKENS, STEPS, ROUNDS = 100, 24, 15
QUIET = 0.85  # of the best bandwidth of the run


def decodings() -> Iterator[tuple[int, Decoding, int]]:
    """Yield for each window a decoding behind the prompt, and the first token."""
    model, cpu = synthetic_shape(SHAPE, torch.bfloat16, DENSITY, seed=0), open_cpu(THREADS)
    weights, heads = model.by_head(HEAD_DENSITY)
    prompt = torch.randint(weights.config.vocab_size, (PROMPT_TOKENS,), generator=generator(1))
    for window in WINDOWS:
        cache = KvCache(weights.config, PROMPT_TOKENS + STEPS, weights.cache_dtype)
        with torch.inference_mode():
            first = int(prefill(weights, prompt, cache).argmax())
        decoder = Decoder(weights, model.predictors, cpu, heads, KvPolicy(window))
        yield window, decoder.start(cache), first


def turn(decoding: Decoding, token: int) -> tuple[list[float], list[int]]:
    """Return the seconds of each step behind the prompt, and the tokens."""
    decoding.caches[0].length = PROMPT_TOKENS
    seconds, tokens = [], []
    for _ in range(STEPS):
        started_s = time.perf_counter()
        token = int(decoding.step(token).argmax())
        seconds.append(time.perf_counter() - started_s)
        tokens.append(token)
    return seconds, tokens


def main() -> None:
    """Write lazy-kv.json."""
    runs, cpu = list(decodings()), open_cpu(THREADS)
    taken: list[tuple[float, dict[int, list[float]]]] = []
    tokens = {window: turn(decoding, first)[1] for window, decoding, first in runs}
    for _ in range(ROUNDS):
        before = read_bandwidth(cpu, seconds=0.1)
        seconds = {window: turn(decoding, first)[0] for window, decoding, first in runs}
        taken.append((min(before, read_bandwidth(cpu, seconds=0.1)), seconds))
    best = max(bandwidth for bandwidth, _ in taken)
    counted = [seconds for bandwidth, seconds in taken if bandwidth >= QUIET * best]
    rows = []
    for window, decoding, _ in runs:
        rows.append(
            {
                "window": window,
                "tokens_per_second": statistics.median(STEPS / sum(each[window]) for each in counted),
                "of_dense": statistics.median(sum(each[1]) / sum(each[window]) for each in counted),
                "slowest_step_ms": 1e3 * statistics.median(max(each[window]) for each in counted),
                "bytes_per_token": decoding.counts.bytes_per_token,
                "head_density": decoding.counts.head_density,
            }
        )
        print(rows[-1])
    failures = [f"window {w} gave other tokens" for w in WINDOWS if tokens[w] != tokens[1]]
    found = {"machine": machine(), "rounds": len(counted), "rounds_set_aside": ROUNDS - len(counted)}
    record("lazy-kv", {**found, "rows": rows, "failures": failures, "void": bool(failures) or not counted})


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
