"""The gate set agrees with its definition; the gated MLP over it reads gate rows once and keeps every bit."""

import numpy as np
import pytest
import torch

from tests.kernels.cases import SPLIT, assert_close, magnitude, normal, random_records, some_neurons
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import (
    Activation,
    Cpu,
    NeuronRecords,
    dense_mlp,
    gate_set,
    gathered_mlp,
    relu,
    silu,
)
from winnow.kernels.gate_set import gate_set_reference
from winnow.kernels.gathered_mlp import gathered_mlp_reference

SIZES = [(1, 8), (17, 40), (700, 33), (60, 2056), (513, 1)]  # neurons, width


@pytest.fixture(params=[relu, silu], ids=lambda activation: activation.name)
def activation(request: pytest.FixtureRequest) -> Activation:
    return request.param


def biases_alone(biases: list[float], width: int = 3) -> NeuronRecords:
    """Gated records whose gate is the activated bias, whatever the input."""
    zeros = torch.zeros(len(biases), width)
    return NeuronRecords.pack(zeros, zeros, torch.tensor(biases), zeros)


def rounding(x: torch.Tensor, records: NeuronRecords) -> torch.Tensor:
    """How far float32 may be from a gate: a share of the sum of its absolute terms. [F]"""
    return SPLIT * (records.w_in.double().abs() @ x.double().abs() + records.bias.double().abs())


@pytest.mark.parametrize(("neurons", "width"), SIZES)
def test_agrees_with_its_definition(
    cpu: Cpu,
    dtype: torch.dtype,
    activation: Activation,
    neurons: int,
    width: int,
    rng: torch.Generator,
):
    x, records = normal(rng, width), random_records(rng, neurons, width, dtype, gated=True)
    thresholds = torch.rand(neurons, generator=rng)
    chosen, gates = gate_set(x, records, thresholds, activation=activation, cpu=cpu)
    _, exact = gate_set_reference(x.double(), records, thresholds, activation)
    margin = rounding(x, records)
    assert ((gates.double() - exact).abs() <= 1.2 * margin).all()  # 1.1: the steepest slope of SiLU
    listed = torch.zeros(neurons, dtype=torch.bool)
    listed[chosen.long()] = True
    assert listed[exact.abs() > thresholds + 1.2 * margin].all()
    assert not listed[exact.abs() < thresholds - 1.2 * margin].any()


def test_the_list_is_what_the_gates_say(
    cpu: Cpu, dtype: torch.dtype, activation: Activation, rng: torch.Generator
):
    x, records = normal(rng, 136), random_records(rng, 1003, 136, dtype, gated=True)
    thresholds = torch.rand(1003, generator=rng) - 0.1
    chosen, gates = gate_set(x, records, thresholds, activation=activation, cpu=cpu)
    assert 0 < len(chosen) < 1003
    assert chosen.tolist() == torch.nonzero(gates.abs() > thresholds).squeeze(1).tolist()


@pytest.mark.compiled
def test_given_gates_change_no_bit(
    isa: str, dtype: torch.dtype, activation: Activation, rng: torch.Generator
):
    x, records = normal(rng, 520), random_records(rng, 1013, 520, dtype, gated=True)
    chosen, gates = gate_set(x, records, torch.full((1013,), 0.4), activation=activation, cpu=opened(isa, 1))
    assert 100 < len(chosen) < 900
    any_order = torch.cat([chosen.flip(0), chosen[:3]])
    for indices in (chosen, some_neurons(rng, 1013), any_order, chosen[:1], chosen[:0]):
        for threads in (1, 2, 3):
            cpu = opened(isa, threads)
            known = gathered_mlp(x, records, indices, activation=activation, cpu=cpu, gates=gates)
            assert torch.equal(known, gathered_mlp(x, records, indices, activation=activation, cpu=cpu))


@pytest.mark.parametrize(("neurons", "width"), SIZES[1:4])
def test_the_mlp_with_given_gates_agrees_with_its_definition(
    cpu: Cpu, dtype: torch.dtype, neurons: int, width: int, rng: torch.Generator
):
    x, records = normal(rng, width), random_records(rng, neurons, width, dtype, gated=True)
    gates, indices = normal(rng, neurons), some_neurons(rng, neurons)
    y = gathered_mlp(x, records, indices, activation=silu, cpu=cpu, gates=gates)
    expected = gathered_mlp_reference(x.double(), records, indices, silu, gates)
    scale = gates.abs().max().item() * magnitude(x, records, torch.arange(neurons))
    assert_close(y, expected, relative=SPLIT, scale=scale)


@pytest.mark.compiled
def test_what_fires_gives_the_bits_of_dense(isa: str, dtype: torch.dtype, rng: torch.Generator):
    x, records = normal(rng, 136), random_records(rng, 1500, 136, dtype, gated=True)
    records.bias.sub_(1.5)
    cpu = opened(isa, 2)
    fires, gates = gate_set(x, records, torch.zeros(1500), activation=relu, cpu=cpu)
    assert 0 < len(fires) < 400
    dense = dense_mlp(x, records, activation=relu, cpu=cpu)
    assert torch.equal(gathered_mlp(x, records, fires, activation=relu, cpu=cpu, gates=gates), dense)


@pytest.mark.compiled
def test_threads_do_not_change_a_bit(
    isa: str, dtype: torch.dtype, activation: Activation, rng: torch.Generator
):
    x, records = normal(rng, 200), random_records(rng, 3001, 200, dtype, gated=True)
    thresholds = torch.rand(3001, generator=rng)
    once = gate_set(x, records, thresholds, activation=activation, cpu=opened(isa, 1))
    for threads in (2, 3):
        for _ in range(4):
            again = gate_set(x, records, thresholds, activation=activation, cpu=opened(isa, threads))
            assert torch.equal(again[0], once[0])
            assert torch.equal(again[1], once[1])


def test_only_gate_rows_are_read(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    x, records = normal(rng, 40), random_records(rng, 90, 40, dtype, gated=True)
    for part in (records.w_up, records.w_out, records.bias_up):
        part.fill_(torch.nan)
    chosen, gates = gate_set(x, records, torch.full((90,), 0.3), activation=silu, cpu=cpu)
    assert 0 < len(chosen) < 90
    assert gates.isfinite().all()


def test_given_gates_spare_the_gate_rows(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    x, records = normal(rng, 40), random_records(rng, 90, 40, dtype, gated=True)
    gates, indices = normal(rng, 90), some_neurons(rng, 90)
    for part in (records.w_in, records.bias):
        part.fill_(torch.nan)
    assert gathered_mlp(x, records, indices, activation=silu, cpu=cpu, gates=gates).isfinite().all()


def test_a_gate_at_its_threshold_is_left_out(cpu: Cpu):
    records = biases_alone([1.0, 2.0, 0.5, 0.0, 3.0])
    thresholds = torch.tensor([1.0, 1.5, 0.5, 0.0, 3.0])
    chosen, gates = gate_set(torch.ones(3), records, thresholds, activation=relu, cpu=cpu)
    assert chosen.tolist() == [1]
    assert gates.tolist() == [1.0, 2.0, 0.5, 0.0, 3.0]


def test_a_negative_gate_counts_by_its_magnitude(cpu: Cpu):
    records = biases_alone([-1.0, -1.0, -20.0])  # SiLU(-1) = -0.2689
    thresholds = torch.tensor([0.26, 0.28, 0.0])
    chosen, gates = gate_set(torch.ones(3), records, thresholds, activation=silu, cpu=cpu)
    assert chosen.tolist() == [0, 2]
    assert gates[0].item() == pytest.approx(-0.26894, abs=1e-5)


def test_a_negative_threshold_selects_and_an_infinite_one_does_not(cpu: Cpu):
    records = biases_alone([-1.0, 0.0, 5.0, 5.0])
    thresholds = torch.tensor([-1e-30, -1.0, torch.inf, -torch.inf])
    chosen, _ = gate_set(torch.ones(3), records, thresholds, activation=relu, cpu=cpu)
    assert chosen.tolist() == [0, 1, 3]


def test_what_is_not_a_number_is_selected(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    records = random_records(rng, 30, 40, dtype, gated=True)
    records.bias[::2] = torch.nan
    high = torch.full((30,), 1e30)
    chosen, gates = gate_set(normal(rng, 40), records, high, activation=silu, cpu=cpu)
    assert chosen.tolist() == list(range(0, 30, 2))
    assert gates[::2].isnan().all()
    high[1] = torch.nan
    chosen, _ = gate_set(normal(rng, 40), records, high, activation=silu, cpu=cpu)
    assert chosen.tolist() == sorted([1, *range(0, 30, 2)])


def test_a_broken_gate_is_not_hidden(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    x, records = normal(rng, 40), random_records(rng, 30, 40, dtype, gated=True)
    gates, indices = normal(rng, 30), torch.tensor([4, 11], dtype=torch.int32)
    gates[11] = torch.nan
    assert gathered_mlp(x, records, indices, activation=silu, cpu=cpu, gates=gates).isnan().all()


def test_refuses_records_without_gates(cpu: Cpu, rng: torch.Generator):
    x, records = normal(rng, 40), random_records(rng, 30, 40, torch.float32)
    with pytest.raises(UsageError, match="thresholds was given for ungated records"):
        gate_set(x, records, torch.zeros(30), activation=silu, cpu=cpu)
    none, gates = torch.zeros(0, dtype=torch.int32), torch.zeros(30)
    with pytest.raises(UsageError, match="gates was given for ungated records"):
        gathered_mlp(x, records, none, activation=silu, cpu=cpu, gates=gates)


@pytest.mark.parametrize("n", [0, 29, 31])
def test_refuses_thresholds_and_gates_of_another_length(cpu: Cpu, n: int, rng: torch.Generator):
    x, records = normal(rng, 40), random_records(rng, 30, 40, torch.float32, gated=True)
    with pytest.raises(UsageError, match=r"thresholds has shape \(\d+,\), expected \(30,\)"):
        gate_set(x, records, torch.zeros(n), activation=silu, cpu=cpu)
    none, gates = torch.zeros(0, dtype=torch.int32), torch.zeros(n)
    with pytest.raises(UsageError, match=r"gates has shape \(\d+,\), expected \(30,\)"):
        gathered_mlp(x, records, none, activation=silu, cpu=cpu, gates=gates)


def test_the_hot_calls_refuse_records_without_gates(cpu: Cpu, rng: torch.Generator):
    records, x, gates = (
        random_records(rng, 50, 40, torch.float32),
        np.zeros((1, 40), np.float32),
        np.zeros(50),
    )
    gates = gates.astype(np.float32)
    indices, count = np.zeros((1, 50), np.int32), np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="ungated"):
        cpu.gate_set(x, records, gates, silu, indices, count, gates[None].copy())
    with pytest.raises(ValueError, match="ungated"):
        cpu.gathered_mlp(x, records, indices, count, silu, x.copy(), gates[None])


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("x", "thresholds", "indices", "gates"),
    [(39, 50, 50, 50), (40, 49, 50, 50), (40, 50, 51, 50), (40, 50, 50, 49)],
)
def test_the_hot_call_checks_lengths(
    isa: str, x: int, thresholds: int, indices: int, gates: int, rng: torch.Generator
):
    records = random_records(rng, 50, 40, torch.float32, gated=True)
    arrays = np.zeros(x, np.float32), np.zeros(thresholds, np.float32), np.zeros(gates, np.float32)
    with pytest.raises(ValueError, match="expected"):
        lists = np.zeros((1, indices), np.int32), np.zeros(1, np.int64)
        opened(isa, 1).gate_set(arrays[0][None], records, arrays[1], silu, *lists, arrays[2][None])


@pytest.mark.compiled
def test_the_hot_calls_take_no_copies(isa: str, rng: torch.Generator):
    records, x = random_records(rng, 50, 40, torch.float32, gated=True), np.zeros((1, 40), np.float32)
    indices, gates, cpu = np.zeros((1, 50), np.int32), np.zeros((1, 50), np.float32), opened(isa, 1)
    count = np.zeros(1, np.int64)
    with pytest.raises(TypeError):
        cpu._native.gate_set(
            x, records.handle, gates[0], silu.code, indices, count, np.zeros((1, 50))
        )  # float64
    with pytest.raises(TypeError):
        doubles = gates.astype(np.float64)
        cpu._native.gathered_mlp(x, records.handle, indices, count, silu.code, x.copy(), doubles)
    with pytest.raises(ValueError, match="gates has length 49, expected 50"):
        cpu.gathered_mlp(x, records, indices, count, silu, x.copy(), gates[:, :49].copy())
