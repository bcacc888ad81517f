"""Batch: every row has the bits it has alone, whatever stands beside it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.kernels.cases import normal
from tests.kernels.conftest import opened
from winnow.kernels import (
    MOST_BATCH,
    Calls,
    Cpu,
    Matrix,
    NeuronRecords,
    QuantisedMatrix,
    int4,
    matrix,
    relu,
    silu,
)
from winnow.kernels.gathered_linear import by_blocks

WIDTH, HEADS = 160, 7
LONG = (130, 1280)  # neurons, width: a team's records exceed a window
ROOM = np.float32


@pytest.fixture(
    params=[torch.float32, torch.bfloat16, torch.int8, int4], ids=["fp32", "bf16", "int8", "int4"]
)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=[2, 3, MOST_BATCH])
def batch(request: pytest.FixtureRequest) -> int:
    return request.param


def some(rng: torch.Generator, batch: int, things: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending lists of none, of all, and of shares between."""
    shares = [0.0, 1.0, 0.1, 0.5, 0.9, 0.02, 0.3, 0.7][:batch]
    lists, counts = np.full((batch, things), -1, np.int32), np.zeros(batch, np.int64)
    for b, share in enumerate(shares):
        chosen = torch.nonzero(torch.rand(things, generator=rng) < share)[:, 0].numpy()
        lists[b, : len(chosen)], counts[b] = chosen, len(chosen)
    return lists, counts


def records(rng: torch.Generator, size: tuple[int, int], dtype: torch.dtype, gated: bool) -> NeuronRecords:
    n_neurons, width = size
    parts = [normal(rng, n_neurons, width, scale=width**-0.5) for _ in range(3)]
    biases = [normal(rng, n_neurons) for _ in range(2)]
    extra = (parts[2], biases[1]) if gated else (None, None)
    return NeuronRecords.pack(parts[0], parts[1], biases[0], *extra, dtype=dtype)


def holds(
    rows: int, *make: tuple[tuple[int, ...], type], call: Callable[[int, int, list[np.ndarray]], None]
) -> bool:
    """Say whether `call(first, last, outputs)` for all rows writes what it writes for each of them alone."""
    together = [np.full((rows, *shape), -7, kind) for shape, kind in make]
    apart = [np.full((rows, *shape), -7, kind) for shape, kind in make]
    call(0, rows, together)
    for b in range(rows):
        call(b, b + 1, [array[b : b + 1] for array in apart])
    return all(np.array_equal(x, y) for x, y in zip(together, apart, strict=True))


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_linear(cpu: Cpu, dtype: torch.dtype, batch: int, rows: int, rng: torch.Generator):
    x, weight, bias = (
        normal(rng, batch, WIDTH).numpy(),
        matrix(normal(rng, rows, WIDTH), dtype),
        normal(rng, rows),
    )
    assert holds(
        batch,
        ((rows,), ROOM),
        call=lambda a, b, out: cpu.linear(x[a:b], weight, bias.numpy(), out[0]),
    )


def test_gathered_rows(cpu: Cpu, dtype: torch.dtype, batch: int, rng: torch.Generator):
    x, weight = normal(rng, batch, WIDTH).numpy(), matrix(normal(rng, 9 * HEADS, WIDTH), dtype)
    lists, counts = some(rng, batch, HEADS)
    assert holds(
        batch,
        ((9 * HEADS,), ROOM),
        call=lambda a, b, out: cpu.gathered_rows(x[a:b], weight, None, lists[a:b], counts[a:b], out[0]),
    )


def test_gathered_columns(cpu: Cpu, dtype: torch.dtype, batch: int, rng: torch.Generator):
    a = normal(rng, batch, 32 * HEADS).numpy()
    weight = matrix(by_blocks(normal(rng, 150, 32 * HEADS), HEADS), dtype)
    lists, counts = some(rng, batch, HEADS)
    bias = normal(rng, 150).numpy()
    assert holds(
        batch,
        ((150,), ROOM),
        call=lambda f, t, out: cpu.gathered_columns(a[f:t], weight, bias, lists[f:t], counts[f:t], out[0]),
    )


@pytest.mark.parametrize("cap", [0, 40])
def test_active_set(cpu: Cpu, batch: int, cap: int, rng: torch.Generator):
    x, bias = normal(rng, batch, WIDTH).numpy(), normal(rng, 700).numpy()
    p1, p2 = QuantisedMatrix.of(normal(rng, 11, WIDTH)), QuantisedMatrix.of(normal(rng, 700, 11))

    def select(a: int, b: int, out: list[np.ndarray]) -> None:
        cpu.active_set(x[a:b], p1, p2, bias, cap, out[0], out[1][:, 0] if b == a + 1 else counts)
        if b > a + 1:
            out[1][:, 0] = counts
        for row, n in zip(out[0], out[1][:, 0], strict=True):
            row[n:] = -1  # room that the kernel may have worked in

    counts = np.zeros(batch, np.int64)
    assert holds(batch, ((700,), np.int32), ((1,), np.int64), call=select)
    assert 0 < counts.min() < 700


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("size", [(1, 32), (90, WIDTH), LONG])
def test_mlps(
    cpu: Cpu, dtype: torch.dtype, batch: int, gated: bool, size: tuple[int, int], rng: torch.Generator
):
    held, x = records(rng, size, dtype, gated), normal(rng, batch, size[1]).numpy()
    lists, counts = some(rng, batch, size[0])
    assert holds(
        batch,
        ((size[1],), ROOM),
        call=lambda a, b, out: cpu.gathered_mlp(x[a:b], held, lists[a:b], counts[a:b], relu, out[0]),
    )
    assert holds(batch, ((size[1],), ROOM), call=lambda a, b, out: cpu.dense_mlp(x[a:b], held, relu, out[0]))


def test_gates_and_the_mlp_that_is_given_them(cpu: Cpu, dtype: torch.dtype, batch: int, rng: torch.Generator):
    held, x = records(rng, (90, WIDTH), dtype, gated=True), normal(rng, batch, WIDTH).numpy()
    thresholds, counts = np.full(90, 0.2, np.float32), np.zeros(batch, np.int64)

    def run(a: int, b: int, out: list[np.ndarray]) -> None:
        lists = np.full((b - a, 90), -1, np.int32)
        cpu.gate_set(x[a:b], held, thresholds, silu, lists, counts[a:b], out[0])
        cpu.gathered_mlp(x[a:b], held, lists, counts[a:b], silu, out[1], out[0])

    assert holds(batch, ((90,), ROOM), ((WIDTH,), ROOM), call=run)
    assert 0 < counts.min() < 90


def calls_of(rows: int, lists: list[list[int]]) -> list[Callable[[Calls], None]]:
    """Every call that takes a batch, on `rows` rows and these lists of 4 things."""
    x, out = np.zeros((rows, 32), np.float32), np.zeros((rows, 8), np.float32)
    long, short = np.zeros((rows, 128), np.float32), np.zeros((rows, 2), np.float32)
    listed, counts = np.array(lists, np.int32), np.full(len(lists), len(lists[0]))
    weight, held = (
        Matrix(torch.zeros(8, 32)),
        records(torch.Generator().manual_seed(0), (4, 32), torch.float32, False),
    )
    return [
        lambda calls: calls.gathered_rows(x, weight, None, listed, counts, out),
        lambda calls: calls.gathered_columns(long, weight, None, listed, counts, short),
        lambda calls: calls.gathered_mlp(x, held, listed, counts, relu, x.copy()),
    ]


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("rows", "lists", "words"),
    [
        (0, [[0, 1, 2, 3]], "batch of 0"),
        (MOST_BATCH + 1, [[0, 1, 2, 3]] * (MOST_BATCH + 1), f"1..{MOST_BATCH}"),
        (2, [[0, 1, 2, 3]], "the lists"),
        (2, [[0, 1, 2, 3], [0, 2, 1, 3]], "ascend"),
        (2, [[0, 1, 2, 3], [0, 1, 1, 3]], "ascend"),
        (2, [[0, 1, 2, 3], [0, 1, 2, 4]], "outside"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_batch_is_refused(isa: str, rows: int, lists: list[list[int]], words: str):
    for call in calls_of(rows, lists):
        with pytest.raises(ValueError, match=words):
            call(opened(isa, 1))


@pytest.mark.compiled
def test_a_list_alone_may_have_any_order(isa: str):
    rng = torch.Generator().manual_seed(0)
    held, x = records(rng, (4, 32), torch.float32, gated=False), normal(rng, 1, 32).numpy()
    found = []
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        found.append(np.zeros((1, 32), np.float32))
        opened(isa, 1).gathered_mlp(x, held, np.array([order], np.int32), np.array([4]), relu, found[-1])
    assert found[0].any()
    assert np.allclose(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.compiled
def test_rows_that_do_not_match_are_refused(isa: str):
    weight, held = (
        Matrix(torch.zeros(8, 32)),
        records(torch.Generator().manual_seed(0), (4, 32), torch.float32, False),
    )
    cpu, x = opened(isa, 1), np.zeros((2, 32), np.float32)
    with pytest.raises(ValueError, match="number of rows"):
        cpu.linear(x, weight, None, np.zeros((3, 8), np.float32))
    with pytest.raises(ValueError, match="number of rows"):
        cpu.dense_mlp(x, held, relu, np.zeros((1, 32), np.float32))
    with pytest.raises(ValueError, match="expected 8"):
        cpu.linear(x, weight, None, np.zeros((2, 9), np.float32))
