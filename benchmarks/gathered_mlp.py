"""Gathered MLP: how much of the machine's read bandwidth the kernels reach, by density.

Random weights, random lists of neurons that all fire, a different list and layer for every call, so that each
call reads memory and not a cache: the layers of a shape exceed 256 MB together, then 1 GB.
Bytes are those of the weights that a call must read; the probe runs before every measurement.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from benchmarks.recorded import THREADS, machine, record

from winnow.kernels import Matrix, NeuronRecords, open_cpu, read_bandwidth, relu

SHAPES = ((2048, 8192), (4096, 16384))  # width, neurons: OPT 1.3B and 6.7B
DENSITIES = (0.05, 0.10, 0.20, 0.50, 1.0)
# Twice: shared third-level caches may hold much of 256 MB; a real model rotates over more.
ROTATIONS_BYTES = (256 << 20, 1 << 30)
REPEATS = 9
PROBE_BYTES = 256 << 20
REPEAT_S = 0.04  # short, so that a disturbance spoils few repeats
QUIET = 0.85  # the middle probe as a share of the best one: below, the machine was shared


@dataclass(frozen=True)
class Case:
    """One row of the result: `call(i)` is the i-th call and reads `n_bytes`."""

    kernel: str
    shape: str
    density: float
    n_bytes: int
    call: Callable[[int], object]


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
    cpu, rng = open_cpu(THREADS), np.random.default_rng(0)
    made = layers(width, n_neurons, rotation_bytes)
    x, out = rng.standard_normal(width, np.float32), np.empty(width, np.float32)
    shape = f"{width} x {n_neurons}"
    for density in DENSITIES:
        n_active = round(density * n_neurons)
        lists = [
            np.sort(rng.choice(n_neurons, n_active, replace=False)).astype(np.int32)
            for _ in range(32 * len(made) + 1)  # no common factor with the number of layers
        ]

        def gathered(i: int, lists: list[np.ndarray] = lists) -> None:
            cpu.gathered_mlp(x, made[i % len(made)], lists[i % len(lists)], relu, out)

        yield Case("gathered_mlp", shape, density, n_active * 2 * width * 2, gathered)
    yield Case(
        "dense_mlp",
        shape,
        1.0,
        n_neurons * 2 * width * 2,
        lambda i: cpu.dense_mlp(x, made[i % len(made)], relu, out),
    )


def linear_case(width: int, n_rows: int, rotation_bytes: int) -> Case:
    cpu = open_cpu(THREADS)
    made = [
        Matrix.empty(n_rows, width, torch.bfloat16) for _ in range(rotation_bytes // (n_rows * width * 2) + 1)
    ]
    for number, matrix in enumerate(made):
        matrix.weight.normal_(generator=torch.Generator().manual_seed(number))
    x, out = np.ones(width, np.float32), np.empty(n_rows, np.float32)
    return Case(
        "linear",
        f"{width} x {n_rows}",
        1.0,
        n_rows * width * 2,
        lambda i: cpu.linear(x, made[i % len(made)], None, out),
    )


def measure(case: Case, counter: Iterator[int]) -> tuple[float, float]:
    """Return bytes per second of the case and of the probe just before it."""
    probed = read_bandwidth(open_cpu(THREADS), PROBE_BYTES, REPEAT_S)
    n_calls = max(2, round(REPEAT_S * probed / case.n_bytes))
    started = time.perf_counter()
    for _ in range(n_calls):
        case.call(next(counter))
    return n_calls * case.n_bytes / (time.perf_counter() - started), probed


def rows(cases: list[Case], rotation_bytes: int) -> Iterator[dict]:
    """Measure the cases in turns, REPEATS times."""
    counters = [itertools.count() for _ in cases]
    taken: list[list[tuple[float, float]]] = [[] for _ in cases]
    for _ in range(REPEATS):
        for case, counter, samples in zip(cases, counters, taken, strict=True):
            samples.append(measure(case, counter))
    for case, samples in zip(cases, taken, strict=True):
        yield {
            "kernel": case.kernel,
            "shape": case.shape,
            "rotation_mb": rotation_bytes >> 20,
            "density": case.density,
            "gb_per_s": statistics.median(rate for rate, _ in samples) / 1e9,
            "read_gb_per_s": statistics.median(probed for _, probed in samples) / 1e9,
            "bandwidth_share": statistics.median(rate / probed for rate, probed in samples),
        }


def main() -> None:
    """Write gathered_mlp.json."""
    result = {"machine": machine(), "rows": []}
    for rotation, (width, n_neurons) in itertools.product(ROTATIONS_BYTES, SHAPES):
        sizes = width, n_neurons, rotation
        result["rows"] += rows([*mlp_cases(*sizes), linear_case(*sizes)], rotation)
    probes = [row["read_gb_per_s"] for row in result["rows"]]
    result["machine"]["read_gb_per_s"] = statistics.median(probes)
    result["void"] = min(probes) < QUIET * max(probes)
    record("gathered_mlp", result)


if __name__ == "__main__":
    main()
