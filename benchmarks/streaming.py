"""Streaming: memory and time per token of one layer up to a million tokens, and what a remainder is worth.

    python -m benchmarks.streaming

One layer, eight heads of width 64, keys and values of noise read in chunks. Bytes are those of the state
and of the process's anonymous memory; keys and values of exact attention grow beside them. Time is that
of single steps, in turns between the lengths.
"""

import ctypes
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from benchmarks.certificates import NAMES, coverage
from benchmarks.recorded import ROOT, machine, record
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from winnow.attention.streaming import StreamingState, streaming
from winnow.base import chart
from winnow.base.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, dot, line, text
from winnow.base.files import replacing
from winnow.base.rng import generator

HEADS, E, CHUNK = 8, 64, 1000
READ = 4000  # tokens before each length that are read too, not only taken in
LENGTHS = (10_000, 100_000, 1_000_000)
KIND = streaming(1024, block=256)
STEPS, ROUNDS = 256, 9  # a round of steps sends one block on
EXACT_LONGEST = 100_000  # keys and values of more would not fit beside the rest


def anonymous_bytes() -> int:
    """Return the resident anonymous memory of this process, freed memory handed back first (glibc)."""
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = next(row for row in status.splitlines() if row.startswith("RssAnon"))
    return 1024 * int(found.split()[1])


def chunks(n: int, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        q, k, v = (torch.randn(1, HEADS, size, E, generator=rng) for _ in range(3))
        yield q, k, v


def grown(folder: Path) -> tuple[list[dict], dict[int, StreamingState]]:
    """Read a million tokens; return what was held at each length, and the states saved there, in files."""
    state, rng, rows = KIND.start(1, HEADS, E, E), generator(0), []
    for last, n in zip((0, *LENGTHS), LENGTHS, strict=False):
        for _, k, v in chunks(n - last - READ, rng):
            state.append(k, v)
        started_s = time.perf_counter()
        for q, k, v in chunks(READ, rng):
            state.step(q, k, v)
        seconds = time.perf_counter() - started_s
        rows.append(
            {
                "tokens": n,
                "state_bytes": state.n_bytes,
                "anonymous_bytes": anonymous_bytes(),
                "prefill_us_per_token": 1e6 * seconds / READ,
                "exact_kv_bytes": n * HEADS * 2 * E * 4,
            }
        )
        save_file(state.save(), folder / f"{n}.safetensors")
        print(rows[-1], flush=True)
    return rows, {n: KIND.load(load_file(folder / f"{n}.safetensors")) for n in LENGTHS}


def timed(states: dict[int, StreamingState], rows: list[dict]) -> None:
    """Add the time of a single step at each length, and of exact attention where it fits."""
    rng = generator(1)
    steps = list(chunks(STEPS, rng))
    q, k, v = (torch.cat(parts, 2) for parts in zip(*steps, strict=True))
    kv = torch.randn(2, 1, HEADS, EXACT_LONGEST, E, generator=rng)
    stream: dict[int, list[float]] = {n: [] for n in LENGTHS}
    exact: dict[int, list[float]] = {n: [] for n in LENGTHS if n <= EXACT_LONGEST}
    for turn in range(1 + ROUNDS):
        for n, state in states.items():
            started_s = time.perf_counter()
            for i in range(STEPS):
                state.step(q[:, :, i : i + 1], k[:, :, i : i + 1], v[:, :, i : i + 1])
            if turn:
                stream[n].append((time.perf_counter() - started_s) / STEPS)
        for n, taken in exact.items():
            started_s = time.perf_counter()
            for i in range(3):
                scaled_dot_product_attention(q[:, :, i : i + 1], kv[0, :, :, :n], kv[1, :, :, :n])
            if turn:
                taken.append((time.perf_counter() - started_s) / 3)
    for row in rows:
        row["step_us"] = 1e6 * statistics.median(stream[row["tokens"]])
        if row["tokens"] in exact:
            row["exact_step_us"] = 1e6 * statistics.median(exact[row["tokens"]])


def drawing(rows: list[dict]) -> str:
    """Return the SVG: bytes against tokens, both logarithmic."""
    values = [row[key] for row in rows for key in ("state_bytes", "exact_kv_bytes")]
    low, high = len(str(min(values))) - 1, len(str(max(values)))

    def place(row: dict, key: str) -> tuple[float, float]:
        across = (len(str(row["tokens"])) - 5) / 2
        upward = (torch.tensor(float(row[key])).log10().item() - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT - 60), HEIGHT - BOTTOM - upward * (HEIGHT - TOP - BOTTOM)

    parts = []
    for power in range(low, high + 1):
        y = HEIGHT - BOTTOM - (power - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        parts += [
            line((LEFT, y), (WIDTH - RIGHT, y), "#d5dae1"),
            text(LEFT - 10, y + 4, f"1e{power}", "tick", "end"),
        ]
    for row in rows:
        x = place(row, "state_bytes")[0]
        parts.append(text(x, HEIGHT - BOTTOM + 19, f"{row['tokens']:,}", "tick", "middle"))
    for key, colour, name in (
        ("state_bytes", chart.MARK, "streaming"),
        ("exact_kv_bytes", chart.LINE, "exact"),
    ):
        places = [place(row, key) for row in rows]
        parts += [line(a, b, colour, 2) for a, b in pairwise(places)]
        parts += [dot(each, is_marked=key == "state_bytes") for each in places]
        parts.append(text(places[-1][0] + 10, places[-1][1] - 10, name, "point"))
    note = f"one layer, {HEADS} heads of width {E}, float32; window {KIND.options.window}"
    return chart.page(chart.Words("What a stream's past takes", note, "tokens", "bytes"), parts)


def main() -> None:
    """Write streaming.json and docs/streaming.svg."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        with tempfile.TemporaryDirectory() as folder:
            rows, states = grown(Path(folder))
        timed(states, rows)
        kinds = [streaming(256, heavy=64, remainder=remainder) for remainder in ("off", "zero")]
        ablation = [coverage(name, 1500, kind) for kind in kinds for name in NAMES]
    times = [row["step_us"] for row in rows]
    found = {
        "machine": {**machine(), "threads": 1},
        "options": {
            "window": KIND.options.window,
            "heavy": KIND.options.heavy,
            "clusters": KIND.options.clusters,
        },
        "rows": rows,
        "anonymous_growth_bytes": rows[-1]["anonymous_bytes"] - rows[0]["anonymous_bytes"],
        "step_time_spread": max(times) / min(times) - 1,
        "ablation": ablation,
    }
    with replacing(ROOT / "docs/streaming.svg") as draft:
        draft.write_text(drawing(rows), encoding="utf-8")
    record("streaming", found)


if __name__ == "__main__":
    main()
