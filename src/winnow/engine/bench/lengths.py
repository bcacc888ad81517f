"""Lengths: what a decode step's attention holds and takes, against the tokens before it.   (floor 5 · engine)

One layer: exact attention by the kernel that decodes, over keys and values of every token, beside the state
that `--context streaming` keeps. Keys and values are noise, all of them read; the two take turns at each
length. The state has one thread, as in decoding; the kernel has all. Exact attention is left out where its
keys and values do not fit into memory.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import torch

from winnow.attention.streaming import Streaming, StreamingState
from winnow.base.chart import Curve, Words, log_chart
from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.base.room import free_memory_bytes, quantity
from winnow.base.timing import commit, cpu_model
from winnow.engine.context import torch_threads
from winnow.kernels import Cpu, KvBlock, read_bandwidth

CHUNK = 1000  # tokens taken in at once
ROUNDS = 5  # turns at each length; medians are shown
STEPS = 64  # of the streaming state in a turn: one block of them leaves the window
EXACT_STEPS = 4
ROOM = 0.8  # of the free memory that keys and values may take


@dataclass(frozen=True)
class HeadShape:
    """The attention of one layer; keys and values of exact attention are held in `dtype`."""

    n_heads: int = 8
    n_kv_heads: int = 8
    head_width: int = 64
    dtype: torch.dtype = torch.bfloat16

    @property
    def token_bytes(self) -> int:
        """Bytes that exact attention keeps of one token."""
        return 2 * self.n_kv_heads * self.head_width * self.dtype.itemsize


@dataclass(frozen=True)
class LengthRow:
    """One length: bytes held, and the median time of a step; None where keys and values do not fit."""

    tokens: int
    exact_bytes: int
    streaming_bytes: int
    exact_us: float | None
    streaming_us: float


@dataclass(frozen=True)
class LengthReport:
    """Rows from the shortest to the longest."""

    shape: HeadShape
    kind: Streaming
    machine: dict[str, object]
    rows: tuple[LengthRow, ...]

    def to_json(self) -> dict[str, object]:
        """Return one object."""
        shape = {**asdict(self.shape), "dtype": str(self.shape.dtype).removeprefix("torch.")}
        options = self.kind.options
        budget = {name: getattr(options, name) for name in ("window", "heavy", "sinks", "clusters", "block")}
        rows = [asdict(row) for row in self.rows]
        return {"machine": self.machine, "shape": shape, "streaming": budget, "rows": rows}

    def to_svg(self) -> str:
        """Return a chart of time against length, both logarithmic, with the bytes held beside each point."""
        shape = self.shape
        words = Words(
            title="A decode step against the tokens before it",
            note=f"one layer, {shape.n_heads} heads, {shape.n_kv_heads} with keys, of width "
            f"{shape.head_width}; {self.machine['cpu']}, {self.machine['threads']} threads",
            across="tokens before the step (labels: bytes held)",
            upward="time per step, us",
        )
        exact = [
            (row.tokens, row.exact_us, quantity(row.exact_bytes))
            for row in self.rows
            if row.exact_us is not None
        ]
        streaming = [(row.tokens, row.streaming_us, quantity(row.streaming_bytes)) for row in self.rows]
        curves = [Curve("streaming", tuple(streaming), is_marked=True)]
        return log_chart(words, [*curves, Curve("exact", tuple(exact))] if exact else curves)


def measure_lengths(
    shape: HeadShape, kind: Streaming, lengths: Sequence[int], cpu: Cpu, tell: Callable[[int], None]
) -> LengthReport:
    """Read up to each of the ascending `lengths` and time steps there; `tell` hears of every length done.

    Takes memory for the longest keys and values that fit, and time for reading the longest stream: some
    50 us per token of the default shape. Raises UsageError for lengths that do not ascend from at least 1.
    """
    if not lengths or lengths[0] < 1 or any(a >= b for a, b in pairwise(lengths)):
        raise UsageError(f"lengths are {list(lengths)}; expected ascending ones from 1 on.")
    draws = generator(0)
    n_exact = max((n for n in lengths if _fits(shape, n)), default=0)
    block = None
    if n_exact:
        block = KvBlock(shape.n_kv_heads, n_exact, shape.head_width, shape.dtype)
        block.keys.normal_(generator=draws)
        block.values.normal_(generator=draws)
    state = kind.start(1, shape.n_kv_heads, shape.head_width, shape.head_width)
    rows = []
    with torch_threads(1), torch.inference_mode():
        for done, n in enumerate(lengths):
            _grow(state, shape, n, draws)
            held = block if block is not None and n <= n_exact else None
            exact, streamed = _timed(state, held, shape, n, cpu)
            rows.append(LengthRow(n, n * shape.token_bytes, state.n_bytes, exact, streamed))
            tell(done + 1)
    machine = {
        "cpu": cpu_model(),
        "threads": cpu.threads,
        "isa": cpu.isa,
        "read_gb_per_s": read_bandwidth(cpu) / 1e9,
        "commit": commit(),
    }
    return LengthReport(shape, kind, machine, tuple(rows))


def _fits(shape: HeadShape, n: int) -> bool:
    free = free_memory_bytes()
    return free is None or n * shape.token_bytes <= ROOM * free


def _grow(state: StreamingState, shape: HeadShape, n: int, draws: torch.Generator) -> None:
    """Take tokens in until `n` are seen."""
    while state.seen < n:
        size = min(CHUNK, n - state.seen)
        keys, values = torch.randn(2, 1, shape.n_kv_heads, size, shape.head_width, generator=draws)
        state.append(keys, values)


def _timed(
    state: StreamingState, block: KvBlock | None, shape: HeadShape, n: int, cpu: Cpu
) -> tuple[float | None, float]:
    """Return the median microseconds of an exact step, None without keys, and of a streaming one."""
    draws = generator(1)
    q = torch.randn(1, shape.n_heads, STEPS, shape.head_width, generator=draws)
    k, v = torch.randn(2, 1, shape.n_kv_heads, STEPS, shape.head_width, generator=draws)
    query, out = q[0, :, 0].contiguous().numpy(), np.empty((shape.n_heads, shape.head_width), np.float32)
    position, scale = np.array([n - 1]), shape.head_width**-0.5
    exact, streamed = [], []
    for turn in range(1 + ROUNDS):
        started_s = time.perf_counter()
        for at in range(STEPS):
            state.step(q[:, :, at : at + 1], k[:, :, at : at + 1], v[:, :, at : at + 1])
        passed_s = time.perf_counter()
        for _ in range(EXACT_STEPS if block is not None else 0):
            assert block is not None
            cpu.attend(query, block, position, 0, scale, out)
        ended_s = time.perf_counter()
        if turn:  # the first one warms up
            streamed.append(1e6 * (passed_s - started_s) / STEPS)
            exact.append(1e6 * (ended_s - passed_s) / EXACT_STEPS)
    return None if block is None else statistics.median(exact), statistics.median(streamed)
