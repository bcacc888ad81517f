"""Tape: a step recorded once and run many times."""

import gc

import numpy as np
import pytest
import torch

from tests.kernels.cases import normal, random_records
from tests.kernels.conftest import opened
from winnow.kernels import Cpu, KvBlock, Matrix, QuantisedMatrix, Tape, relu, silu


def step(calls, rng: torch.Generator) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Make every call once, each on what the one before wrote; return what may change, and outputs."""
    width, heads, neurons = 48, 6, 90
    x, row, bias = normal(rng, width).numpy(), np.empty((1, width), np.float32), normal(rng, width).numpy()
    matrix, kv = Matrix(normal(rng, width, width)), KvBlock(3, 20, 8, torch.float32)
    position, count = np.zeros(1, np.int64), np.zeros(1, np.int64)
    mixed, out = np.empty((heads, 8), np.float32), np.empty(width, np.float32)
    calls.layer_norm(x[None], bias, bias, 1e-5, row)
    calls.linear(row, matrix, bias, out[None])
    q = out.reshape(heads, 8)
    calls.rotate(q, np.cos(bias[:4]), np.sin(bias[:4]))
    calls.append_kv(kv, position, q[:3], q[3:])
    calls.attend(q, kv, position, 5, 0.3, mixed)
    calls.rms_norm(mixed.reshape(1, -1), bias, 1e-5, row)
    p1, p2 = QuantisedMatrix.of(normal(rng, 7, width)), QuantisedMatrix.of(normal(rng, neurons, 7))
    indices = np.zeros((1, neurons), np.int32)
    y, z = np.empty((1, width), np.float32), np.empty((1, width), np.float32)
    shift = normal(rng, neurons).numpy()
    calls.active_set(row, p1, p2, shift, 0, indices, count)
    calls.gathered_mlp(row, random_records(rng, neurons, width, torch.float32), indices, count, relu, y)
    gated, gates = (
        random_records(rng, neurons, width, torch.bfloat16, gated=True),
        np.empty((1, neurons), np.float32),
    )
    chosen, n_chosen = np.zeros((1, neurons), np.int32), np.zeros(1, np.int64)
    calls.gate_set(y, gated, np.full(neurons, 0.1, np.float32), silu, chosen, n_chosen, gates)
    calls.gathered_mlp(y, gated, chosen, n_chosen, silu, z, gates)
    calls.dense_mlp(z, gated, silu, out[None])
    calls.add(out, z[0])
    return {"x": x, "position": position}, [y, z, mixed, indices, count, gates]


def test_a_run_writes_what_the_calls_write(cpu: Cpu):
    tape = cpu.tape()
    assert isinstance(tape, Tape)
    recorded, found = step(tape, torch.Generator().manual_seed(3))
    direct, expected = step(cpu, torch.Generator().manual_seed(3))
    assert not all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))  # nothing has run
    tape.run()
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert np.array_equal(recorded["x"], direct["x"])


def test_a_run_reads_its_inputs_anew(cpu: Cpu, rng: torch.Generator):
    tape, x, out = cpu.tape(), np.ones((1, 30), np.float32), np.empty((1, 5), np.float32)
    matrix = Matrix(normal(rng, 5, 30))
    tape.linear(x, matrix, None, out)
    tape.run()
    once = out.copy()
    x *= 2
    tape.run()
    assert np.array_equal(out, 2 * once)


@pytest.mark.compiled
def test_a_tape_keeps_what_it_points_to(isa: str):
    tape = opened(isa, 1).tape()
    _, found = step(tape, torch.Generator().manual_seed(3))
    gc.collect()  # operands and arrays of `step` are held by the tape alone
    crowd = [np.full(5000, np.nan, np.float32) for _ in range(100)]
    tape.run()
    _, expected = step(opened(isa, 1), torch.Generator().manual_seed(3))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    del crowd


@pytest.mark.compiled
def test_a_tape_outlives_the_last_name_of_its_cpu(isa: str):
    tape, x, out = opened(isa, 2).tape(), np.ones(3, np.float32), np.zeros(3, np.float32)
    gc.collect()
    tape.add(x, out)
    tape.run()
    assert out.tolist() == [1, 1, 1]


def test_a_position_beyond_the_cache_ends_the_run(cpu: Cpu):
    tape = cpu.tape()
    inputs, _ = step(tape, torch.Generator().manual_seed(3))
    inputs["position"][0] = 20
    with pytest.raises(ValueError, match="cache of 20"):
        tape.run()
    inputs["position"][0] = 19
    tape.run()


def test_the_clock_only_grows(cpu: Cpu):
    tape, times = cpu.tape(), np.zeros((3, 1))
    for cell in times:
        tape.clock(cell)
    tape.run()
    assert 0 < times[0, 0] <= times[1, 0] <= times[2, 0]
