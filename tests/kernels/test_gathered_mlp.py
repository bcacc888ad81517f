"""The gathered MLP agrees with its definition, and leaving out what does not fire changes no bit."""

import numpy as np
import pytest
import torch

from tests.kernels.cases import SPLIT, assert_close, magnitude, normal, random_records, some_neurons
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import Activation, Cpu, NeuronRecords, dense_mlp, gathered_mlp, relu, silu
from winnow.kernels.gathered_mlp import dense_mlp_reference, gathered_mlp_reference

SIZES = [(1, 8), (17, 40), (200, 136), (700, 33), (60, 2056), (513, 1)]  # neurons, width
KINDS = [(relu, False), (relu, True), (silu, False), (silu, True)]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0].name}{'-gated' * kind[1]}")
def kind(request: pytest.FixtureRequest) -> tuple[Activation, bool]:
    return request.param


def firing(x: torch.Tensor, records: NeuronRecords) -> torch.Tensor:
    """The neurons whose pre-activation is above 0, with a margin that takes in near misses."""
    scores = records.w_in.double() @ x.double() + records.bias.double()
    return torch.nonzero(scores > -1e-3).squeeze(1).to(torch.int32)


@pytest.mark.parametrize(("neurons", "width"), SIZES)
def test_agrees_with_its_definition(
    cpu: Cpu,
    dtype: torch.dtype,
    kind: tuple[Activation, bool],
    neurons: int,
    width: int,
    rng: torch.Generator,
):
    activation, gated = kind
    x, records = normal(rng, width), random_records(rng, neurons, width, dtype, gated)
    indices = some_neurons(rng, neurons)
    y = gathered_mlp(x, records, indices, activation=activation, cpu=cpu)
    expected = gathered_mlp_reference(x.double(), records, indices, activation)
    assert_close(y, expected, relative=SPLIT, scale=magnitude(x, records, indices))
    y = dense_mlp(x, records, activation=activation, cpu=cpu)
    expected = dense_mlp_reference(x.double(), records, activation)
    assert_close(y, expected, relative=SPLIT, scale=magnitude(x, records, torch.arange(neurons)))


@pytest.mark.parametrize("kept", [[], [0], [199], [7, 7, 3, 199, 0, 7]], ids=str)
def test_any_list_is_summed(
    cpu: Cpu, dtype: torch.dtype, kind: tuple[Activation, bool], kept: list[int], rng: torch.Generator
):
    activation, gated = kind
    x, records = normal(rng, 136), random_records(rng, 200, 136, dtype, gated)
    indices = torch.tensor(kept, dtype=torch.int32)
    # one neuron: its pre-activation may nearly cancel, and there is no larger one to measure against
    y = gathered_mlp(x, records, indices, activation=activation, cpu=cpu)
    expected = gathered_mlp_reference(x.double(), records, indices, activation)
    assert_close(y, expected, relative=SPLIT, scale=magnitude(x, records, indices))


@pytest.mark.compiled
@pytest.mark.parametrize("gated", [False, True])
def test_neurons_that_do_not_fire_change_no_bit(
    isa: str, dtype: torch.dtype, gated: bool, rng: torch.Generator
):
    x, records = normal(rng, 136), random_records(rng, 1500, 136, dtype, gated)
    records.bias.sub_(1.5)
    cpu, exact = opened(isa, 2), firing(x, records)
    assert 0 < len(exact) < 400
    dense = dense_mlp(x, records, activation=relu, cpu=cpu)
    assert torch.equal(gathered_mlp(x, records, exact, activation=relu, cpu=cpu), dense)
    padded = torch.cat([exact, some_neurons(rng, 1500, 0.3)]).unique().to(torch.int32)
    assert torch.equal(gathered_mlp(x, records, padded, activation=relu, cpu=cpu), dense)


@pytest.mark.compiled
def test_all_neurons_listed_give_the_bits_of_dense(
    isa: str, dtype: torch.dtype, kind: tuple[Activation, bool], rng: torch.Generator
):
    activation, gated = kind
    x, records = normal(rng, 40), random_records(rng, 777, 40, dtype, gated)
    every, cpu = torch.arange(777, dtype=torch.int32), opened(isa, 2)
    dense = dense_mlp(x, records, activation=activation, cpu=cpu)
    assert torch.equal(gathered_mlp(x, records, every, activation=activation, cpu=cpu), dense)


@pytest.mark.compiled
def test_threads_do_not_change_a_bit(
    isa: str, dtype: torch.dtype, kind: tuple[Activation, bool], rng: torch.Generator
):
    activation, gated = kind
    x, records = normal(rng, 520), random_records(rng, 1000, 520, dtype, gated)
    indices = some_neurons(rng, 1000)
    once = gathered_mlp(x, records, indices, activation=activation, cpu=opened(isa, 1))
    for threads in (2, 3):
        for _ in range(10):
            again = gathered_mlp(x, records, indices, activation=activation, cpu=opened(isa, threads))
            assert torch.equal(again, once)


def test_an_input_that_is_not_a_number_is_not_hidden(
    cpu: Cpu, dtype: torch.dtype, kind: tuple[Activation, bool], rng: torch.Generator
):
    activation, gated = kind
    x, records = normal(rng, 40), random_records(rng, 30, 40, dtype, gated)
    x[39] = torch.nan
    indices = torch.tensor([4, 11], dtype=torch.int32)
    assert gathered_mlp(x, records, indices, activation=activation, cpu=cpu).isnan().all()
    assert dense_mlp(x, records, activation=activation, cpu=cpu).isnan().all()


def test_neurons_that_are_not_listed_are_not_read(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    x, records = normal(rng, 40), random_records(rng, 90, 40, dtype)
    records.storage.view(dtype)[1::2] = torch.nan
    indices = torch.arange(0, 90, 2, dtype=torch.int32)
    assert gathered_mlp(x, records, indices, activation=relu, cpu=cpu).isfinite().all()


def test_large_inputs_to_silu_stay_finite(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    x, records = normal(rng, 40) * 300, random_records(rng, 50, 40, dtype)
    y = dense_mlp(x, records, activation=silu, cpu=cpu)
    assert_close(y, dense_mlp_reference(x.double(), records, silu), relative=1e-5)


@pytest.mark.parametrize("bad", [[-1], [3, 50], [2**31 - 1], [-(2**31), 0]], ids=str)
def test_refuses_an_index_outside_the_records(cpu: Cpu, bad: list[int], rng: torch.Generator):
    records, indices = random_records(rng, 50, 40, torch.float32), torch.tensor(bad, dtype=torch.int32)
    with pytest.raises(UsageError, match=r"0\.\.49"):
        gathered_mlp(torch.zeros(40), records, indices, activation=relu, cpu=cpu)


@pytest.mark.compiled
@pytest.mark.parametrize("bad", [-1, 50, -(2**31), 2**31 - 1])
def test_the_hot_call_refuses_an_index_outside_the_records(isa: str, bad: int, rng: torch.Generator):
    records, x = random_records(rng, 50, 40, torch.float32), np.zeros((1, 40), np.float32)
    with pytest.raises(ValueError, match=r"0\.\.49"):
        opened(isa, 1).gathered_mlp(
            x, records, np.array([[0, bad, 1]], np.int32), np.array([3]), relu, x.copy()
        )


@pytest.mark.compiled
@pytest.mark.parametrize("count", [-1, 4, 2**40])
def test_the_hot_call_refuses_a_count_beyond_the_list(isa: str, count: int, rng: torch.Generator):
    records, x = random_records(rng, 50, 40, torch.float32), np.zeros((1, 40), np.float32)
    with pytest.raises(ValueError, match=r"0\.\.3"):
        opened(isa, 1).gathered_mlp(x, records, np.zeros((1, 3), np.int32), np.array([count]), relu, x.copy())


@pytest.mark.compiled
@pytest.mark.parametrize(("x", "out"), [(39, 40), (40, 41)])
def test_the_hot_calls_check_lengths(isa: str, x: int, out: int, rng: torch.Generator):
    records, none = random_records(rng, 50, 40, torch.float32), np.zeros((1, 0), np.int32)
    arrays = np.zeros((1, x), np.float32), np.zeros((1, out), np.float32)
    with pytest.raises(ValueError, match="expected 40"):
        opened(isa, 1).gathered_mlp(arrays[0], records, none, np.zeros(1, np.int64), relu, arrays[1])
    with pytest.raises(ValueError, match="expected 40"):
        opened(isa, 1).dense_mlp(arrays[0], records, relu, arrays[1])


def test_refuses_indices_of_another_dtype(cpu: Cpu, rng: torch.Generator):
    records = random_records(rng, 50, 40, torch.float32)
    with pytest.raises((UsageError, TypeError)):  # TypeError: the test run checks annotations first
        gathered_mlp(torch.zeros(40), records, torch.zeros(2, dtype=torch.int64), activation=relu, cpu=cpu)
