"""Attention on a CUDA device: the CPU's numbers, and a stream's memory and time to a million tokens.

    python -m benchmarks.attention_cuda
    python -m benchmarks.attention_cuda --device cpu --lengths 2000     tries it; nothing is written

Agreement: each kind in float32 on the device against its definition in float64 on the CPU, whole sequences
and one token at a time; the control is the same with one value changed, which must be noticed. Streams whose
tokens were absorbed have no definition in float64 and are compared with themselves on the CPU.

Growth: one layer, eight heads of width 64, as in benchmarks/streaming.py. Exact attention reads keys and
values that lie ready in one piece, in the quickest of three ways; memory is what torch allocates.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from benchmarks.recorded import machine, record
from tests.attention.cases import CASES, operands
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, LlamaConfig

from winnow.attention import Kind, StreamingCache, register, streaming
from winnow.attention.reference import attend_reference, exponential
from winnow.attention.streaming import Rotation, StreamingState
from winnow.base.rng import generator

LENGTHS = (10_000, 100_000, 1_000_000)
HEADS, E, CHUNK, READ = 8, 64, 4096, 4096
KIND = streaming(1024, block=256)
STEPS, ROUNDS = 256, 5  # a round of steps sends one block on
N, WIDTHS = 200, (16, 12)  # of the agreement: no multiple of a chunk, GQA 4 over 2
SMALL = {"heavy": 8, "clusters": 6, "block": 16, "reservoir": 32}
STREAMS = {
    "streaming, all held": streaming(N),
    "streaming": streaming(32, **SMALL),
    "streaming, cache positions": streaming(32, **SMALL, position="cache", rotation=Rotation.of(1e4, 16)),
}
WITHIN = 2e-4  # of the largest output: what float32 may differ by


def off(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference over the largest number."""
    return float((found.double().cpu() - wanted.double().cpu()).abs().max() / wanted.abs().max())


def agreement(device: torch.device) -> list[dict]:
    """Return how far each kind on the device is from what it should be."""
    rows = []
    for name, kind in {**{name: case.kind for name, case in CASES.items()}, **STREAMS}.items():
        spread = 1.0 if name in ("softmax", "elu", *STREAMS) else 0.3  # others cancel where scores are large
        q, k, v = operands(generator(3), n_queries=N, n_keys=N, widths=WIDTHS, spread=spread)
        if name == "streaming, cache positions":
            v = v.repeat(1, 1, 1, 2)[..., :16]
        changed = v.clone()
        changed[:, :, N // 2, 0] += 1.0
        for is_causal in (True, False):
            wanted = _definition(name, kind, q, k, v, is_causal)
            there = [x.to(device) for x in (q, k, v, changed)]
            row = {
                "kind": name,
                "is_causal": is_causal,
                "difference": off(kind(*there[:3], causal=is_causal), wanted),
            }
            row["control"] = off(kind(*there[:2], there[3], causal=is_causal), wanted)
            if is_causal:
                row["one_by_one"] = off(_one_by_one(kind, *there[:3]), wanted)
            rows.append(row)
            print(row, flush=True)
    return rows


def _definition(name: str, kind: Kind, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    if name in CASES:
        case = CASES[name]
        weight, scale = case.definition(), case.scale_at(q.shape[3])
    elif name == "streaming, all held":
        weight, scale = exponential, q.shape[3] ** -0.5
    else:
        return kind(q, k, v, causal=is_causal)
    return attend_reference(weight, q.double(), k.double(), v.double(), causal=is_causal, scale=scale)


def _one_by_one(kind: Kind, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    state, outs = kind.start(k.shape[0], k.shape[1], k.shape[3], v.shape[3], device=k.device), []
    for t in range(k.shape[2]):
        state.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        outs.append(state.read(q[:, :, t : t + 1]))
    return torch.cat(outs, 2)


def in_a_model(device: torch.device) -> dict:
    """Return how far a transformers model that streams on the device is from the same on the CPU."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 61}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)
    model, rng = AutoModelForCausalLM.from_config(config).eval(), generator(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=rng)
    register()
    model.set_attn_implementation("winnow_streaming")
    ids = torch.randint(61, (2, 150), generator=rng)
    logits = []
    for where in ("cpu", device):
        cache = StreamingCache(config, streaming(32, **SMALL))
        logits.append(model.to(where)(ids.to(where), past_key_values=cache, use_cache=True).logits)
    short = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    prompt = ids[:, :20].to(device)
    cache = StreamingCache(config, streaming(128, **SMALL))
    mine = model.generate(prompt, past_key_values=cache, **short)
    model.set_attn_implementation("sdpa")
    found = {
        "difference": off(logits[1], logits[0]),
        "control": off(logits[1].roll(1, 1), logits[0]),
        "generates_what_sdpa_does": torch.equal(mine, model.generate(prompt, **short)),
    }
    print(found, flush=True)
    return found


class Clock:
    """Seconds and bytes of the device; on the CPU there is no count of bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.is_cuda = device, device.type == "cuda"

    def wait(self) -> float:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def allocated(self) -> int | None:
        gc.collect()
        return torch.cuda.memory_allocated(self.device) if self.is_cuda else None

    def restart_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.is_cuda else None

    def above(self, before: int | None) -> int | None:
        """Return by how much the peak lies above what was allocated before."""
        peak = self.peak()
        return None if peak is None or before is None else peak - before


def chunks(n: int, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for start in range(0, n, CHUNK):
        q, k, v = torch.randn(3, 1, HEADS, min(CHUNK, n - start), E, generator=rng, device=rng.device)
        yield q, k, v


def grown(clock: Clock, lengths: tuple[int, ...]) -> list[dict]:
    """Read a stream; return what was held, and what a token takes, at each length."""
    rows, rng = [], generator(0, clock.device)
    before = clock.allocated()
    state = KIND.start(1, HEADS, E, E, device=clock.device)
    for last, n in zip((0, *lengths), lengths, strict=False):
        clock.restart_peak()
        read = min(READ, (n - last) // 2)
        for _, k, v in chunks(n - last - read, rng):
            state.append(k, v)
            if state.seen % (25 * CHUNK) == 0:
                print(f"{state.seen} of {n} tokens", flush=True)
        started_s = clock.wait()
        for q, k, v in chunks(read, rng):
            state.step(q, k, v)
        prefill_s = clock.wait() - started_s
        row = {"tokens": n, "state_bytes": state.n_bytes, "read_peak_bytes": clock.above(before)}
        row["prefill_us_per_token"] = 1e6 * prefill_s / read
        q = k = v = None  # nothing but the state is held
        row["held_bytes"] = None if before is None else (clock.allocated() or 0) - before
        row |= decoded(clock, KIND.load(state.save()), n)
        rows.append(row)
        print(row, flush=True)
    return rows


def decoded(clock: Clock, state: StreamingState, n: int) -> dict:
    """Time single steps of a stream that holds `n` tokens, and of exact attention over as many."""
    rng = generator(1, clock.device)
    q, k, v = next(chunks(STEPS, rng))
    row: dict = {}
    before = clock.allocated()
    clock.restart_peak()
    stream = partial(_stream, state, q, k, v)
    row["step_us"] = _median_us(clock, stream)
    row["step_peak_bytes"] = clock.above(before)
    clock.restart_peak()
    kv = torch.randn(2, 1, HEADS, n + STEPS, E, generator=rng, device=clock.device)
    ways: dict[str, Callable[[], None]] = {
        "sdpa float32": partial(_exact, _sdpa, q, k, v, kv, n),
        "matmul float32": partial(_exact, _matmul, q, k, v, kv, n),
    }
    row["exact_kv_bytes"] = {"float32": kv.nbytes, "bfloat16": kv.nbytes // 2}
    times = {name: _median_us(clock, way) for name, way in ways.items()}
    row["exact_held_bytes"] = clock.above(before)
    kv = kv.bfloat16()
    half = [x.bfloat16() for x in (q, k, v)]
    times["sdpa bfloat16"] = _median_us(clock, partial(_exact, _sdpa, *half, kv, n))
    quickest = min(times, key=lambda name: times[name])
    return {**row, "exact_step_us": times, "exact_quickest": quickest, "exact_quickest_us": times[quickest]}


def _median_us(clock: Clock, run: Callable[[], None]) -> float:
    """Return the median time of a step in microseconds, after a round that does not count."""
    taken = []
    for turn in range(1 + ROUNDS):
        started_s = clock.wait()
        run()
        if turn:
            taken.append((clock.wait() - started_s) / STEPS)
    return 1e6 * statistics.median(taken)


def _stream(state: StreamingState, q: Tensor, k: Tensor, v: Tensor) -> None:
    for t in range(STEPS):
        state.step(q[:, :, t : t + 1], k[:, :, t : t + 1], v[:, :, t : t + 1])


def _exact(attend: Callable, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, n: int) -> None:
    for t in range(STEPS):
        kv[0, :, :, n + t], kv[1, :, :, n + t] = k[:, :, t], v[:, :, t]
        attend(q[:, :, t : t + 1], kv[0, :, :, : n + t + 1], kv[1, :, :, : n + t + 1])


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v)


def _matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * E**-0.5).softmax(-1) @ v


def opened() -> tuple[torch.device, tuple[int, ...], str | None]:
    line = argparse.ArgumentParser(description=__doc__)
    line.add_argument("--device", default="cuda")
    line.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="rising, at least 2 each")
    line.add_argument("--commit", help="what runs, where git cannot say")
    found = line.parse_args()
    device = torch.device(found.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here; --device cpu --lengths 2000 tries the script.")
    return device, tuple(found.lengths), found.commit


def main() -> None:
    """Write attention-cuda.json; refuse it where a kind is off, a control was missed or a state grew."""
    device, lengths, commit = opened()
    clock = Clock(device)
    with torch.inference_mode():
        agreed, model = agreement(device), in_a_model(device)
        rows = grown(clock, lengths)
    times = [row["step_us"] for row in rows]
    failures = [
        f"{row.get('kind', 'model')}: {key} {row[key]:.2g}"
        for row in (*agreed, model)
        for key, is_wrong in (
            ("difference", lambda x: x > WITHIN),
            ("one_by_one", lambda x: x > WITHIN),
            ("control", lambda x: x < 10 * WITHIN),
        )
        if key in row and is_wrong(row[key])
    ]
    if len({row["state_bytes"] for row in rows}) != 1:
        failures.append("the state grew")
    found = {
        "machine": machine(),
        "device": torch.cuda.get_device_name(device) if clock.is_cuda else "cpu",
        "torch": torch.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "options": {
            "window": KIND.options.window,
            "heavy": KIND.options.heavy,
            "clusters": KIND.options.clusters,
        },
        "largest_difference": max(max(row["difference"], row.get("one_by_one", 0)) for row in agreed),
        "smallest_control": min(row["control"] for row in agreed),
        "agreement": agreed,
        "model": model,
        "rows": rows,
        "step_time_spread": max(times) / min(times) - 1,
        "void": bool(failures),
        "failures": failures,
    }
    if commit is not None:
        found["machine"]["commit"] = commit
    if clock.is_cuda:
        record("attention-cuda", found)
    else:
        print(f"tried on the CPU, nothing written; failures: {failures or 'none'}")


if __name__ == "__main__":
    main()
