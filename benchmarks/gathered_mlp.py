"""Gathered MLP: how much of the machine's read bandwidth the kernels reach, by density.

Random weights, random lists of neurons that all fire, a different list and layer for every call, so that each
call reads memory and not a cache: the layers of a shape exceed 256 MB together, then 1 GB. Calls are recorded
on a tape and run together, as a decode step runs them.
Bytes are those of the weights that a call must read. The probe runs before and after every measurement, and
one counts only where both read nearly the same: a shared machine may halve its bandwidth from one second to
the next. What it read decides the row that a measurement belongs to, since a share of less is easily had.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from benchmarks.recorded import THREADS, machine, record

from winnow.kernels import Calls, Matrix, NeuronRecords, open_cpu, read_bandwidth, relu

SHAPES = ((2048, 8192), (4096, 16384))  # width, neurons: OPT 1.3B and 6.7B
DENSITIES = (0.05, 0.10, 0.20, 0.50, 1.0)
# Twice: shared third-level caches may hold much of 256 MB; a real model rotates over more.
ROTATIONS_BYTES = (256 << 20, 1 << 30)
ROUNDS = 40
LEAST_REPEATS = 5  # below, there is no row
REPEAT_S = 0.04  # short, so that a disturbance spoils few repeats
STEADY = 0.85  # the lower probe as a share of the higher one: below, the machine changed meanwhile
STATES_GB_S = (0, 45, 60, 1000)  # bounds of probed bandwidths: this machine gives about 38, 50 and 80


@dataclass(frozen=True)
class Case:
    """One row of the result: `call(calls, i)` makes or records the i-th call, which reads `n_bytes`."""

    kernel: str
    shape: str
    density: float
    n_bytes: int
    call: Callable[[Calls, int], object]


def layers(width: int, n_neurons: int, rotation_bytes: int) -> list[NeuronRecords]:
    made: list[NeuronRecords] = []
    while sum(layer.storage.nbytes for layer in made) < rotation_bytes:
        layer = NeuronRecords.empty(n_neurons, width, torch.bfloat16)
        layer.w_in.normal_(generator=torch.Generator().manual_seed(len(made)))
        layer.w_out.copy_(layer.w_in)
        layer.bias.fill_(1e4)  # every neuron fires
        made.append(layer)
    return made


def mlp_cases(width: int, n_neurons: int, rotation_bytes: int) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    made = layers(width, n_neurons, rotation_bytes)
    x, out = rng.standard_normal((1, width), np.float32), np.empty((1, width), np.float32)
    shape = f"{width} x {n_neurons}"
    for density in DENSITIES:
        n_active = round(density * n_neurons)
        count = np.array([n_active])
        lists = [
            np.sort(rng.choice(n_neurons, n_active, replace=False)).astype(np.int32)[None]
            for _ in range(32 * len(made) + 1)  # no common factor with the number of layers
        ]

        def gathered(
            calls: Calls, i: int, lists: list[np.ndarray] = lists, count: np.ndarray = count
        ) -> None:
            calls.gathered_mlp(x, made[i % len(made)], lists[i % len(lists)], count, relu, out)

        yield Case("gathered_mlp", shape, density, n_active * 2 * width * 2, gathered)
    yield Case(
        "dense_mlp",
        shape,
        1.0,
        n_neurons * 2 * width * 2,
        lambda calls, i: calls.dense_mlp(x, made[i % len(made)], relu, out),
    )


def linear_case(width: int, n_rows: int, rotation_bytes: int) -> Case:
    made = [
        Matrix.empty(n_rows, width, torch.bfloat16) for _ in range(rotation_bytes // (n_rows * width * 2) + 1)
    ]
    for number, matrix in enumerate(made):
        matrix.weight.normal_(generator=torch.Generator().manual_seed(number))
    x, out = np.ones((1, width), np.float32), np.empty((1, n_rows), np.float32)
    return Case(
        "linear",
        f"{width} x {n_rows}",
        1.0,
        n_rows * width * 2,
        lambda calls, i: calls.linear(x, made[i % len(made)], None, out),
    )


@dataclass(frozen=True)
class Sample:
    """Bytes per second of a case, and of the probes just before and after it."""

    rate: float
    before: float
    after: float

    @property
    def probed(self) -> float:
        """Bytes per second that the machine could read meanwhile, as far as is known."""
        return (self.before + self.after) / 2

    @property
    def is_steady(self) -> bool:
        """Whether both probes read nearly the same."""
        return min(self.before, self.after) >= STEADY * max(self.before, self.after)


def probe() -> float:
    return read_bandwidth(open_cpu(THREADS), seconds=REPEAT_S)


def measure(case: Case, counter: Iterator[int]) -> Sample:
    before = probe()
    n_calls = max(2, round(REPEAT_S * before / case.n_bytes))
    tape = open_cpu(THREADS).tape()
    for _ in range(n_calls):
        case.call(tape, next(counter))
    started = time.perf_counter()
    tape.run()
    rate = n_calls * case.n_bytes / (time.perf_counter() - started)
    return Sample(rate, before, probe())


def rows(cases: list[Case], rotation_bytes: int) -> Iterator[dict]:
    """Measure the cases in turns; a row for each case and each state of the machine that lasted."""
    counters = [itertools.count() for _ in cases]
    taken: list[list[Sample]] = [[] for _ in cases]
    for _ in range(ROUNDS):
        for case, counter, samples in zip(cases, counters, taken, strict=True):
            samples.append(measure(case, counter))
    for (least, most), (case, samples) in itertools.product(
        itertools.pairwise(STATES_GB_S), zip(cases, taken, strict=True)
    ):
        counted = [s for s in samples if s.is_steady and least <= s.probed / 1e9 < most]
        if len(counted) < LEAST_REPEATS:
            continue
        yield {
            "kernel": case.kernel,
            "shape": case.shape,
            "rotation_mb": rotation_bytes >> 20,
            "density": case.density,
            "machine_reads_gb_s": f"{least} to {most}",
            "repeats": len(counted),
            "gb_per_s": statistics.median(each.rate / 1e9 for each in counted),
            "read_gb_per_s": statistics.median(each.probed / 1e9 for each in counted),
            "bandwidth_share": statistics.median(each.rate / each.probed for each in counted),
        }


def main() -> None:
    """Write gathered_mlp.json."""
    result = {"machine": machine(), "rows": []}
    for rotation, (width, n_neurons) in itertools.product(ROTATIONS_BYTES, SHAPES):
        sizes = width, n_neurons, rotation
        result["rows"] += rows([*mlp_cases(*sizes), linear_case(*sizes)], rotation)
    result["machine"]["read_gb_per_s"] = statistics.median(row["read_gb_per_s"] for row in result["rows"])
    record("gathered_mlp", result)


if __name__ == "__main__":
    main()
