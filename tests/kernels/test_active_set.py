"""The active set agrees with its definition; the cap keeps the best."""

import numpy as np
import pytest
import torch

from tests.kernels.cases import normal
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import Cpu, Matrix, QuantisedMatrix, active_set
from winnow.kernels.active_set import active_set_reference
from winnow.kernels.linear import linear_reference

SIZES = [(8, 1, 1), (40, 3, 17), (136, 24, 700), (257, 33, 256), (64, 16, 1025)]  # width, rank, neurons


def predictor(
    rng: torch.Generator, width: int, rank: int, neurons: int, dtype: torch.dtype
) -> tuple[torch.Tensor, Matrix, Matrix, torch.Tensor]:
    p1 = Matrix(normal(rng, rank, width, dtype=dtype, scale=width**-0.5))
    p2 = Matrix(normal(rng, neurons, rank, dtype=dtype, scale=rank**-0.5))
    return normal(rng, width), p1, p2, normal(rng, neurons, scale=0.5)


def scored(scores: list[float]) -> tuple[torch.Tensor, Matrix, Matrix, torch.Tensor]:
    """A predictor whose scores are the given ones: the bias alone decides."""
    one = Matrix(torch.zeros(1, 1))
    return torch.zeros(1), one, Matrix(torch.zeros(len(scores), 1)), torch.tensor(scores)


@pytest.mark.parametrize(("width", "rank", "neurons"), SIZES)
def test_agrees_with_its_definition(
    cpu: Cpu, dtype: torch.dtype, width: int, rank: int, neurons: int, rng: torch.Generator
):
    x, p1, p2, bias = predictor(rng, width, rank, neurons, dtype)
    chosen = active_set(x, p1, p2, bias, cpu=cpu)
    hidden = linear_reference(x.double(), p1.weight, None)
    scores = linear_reference(hidden, p2.weight, bias)
    margin = 1e-5 if dtype == torch.float32 else 1e-4
    listed = torch.zeros(neurons, dtype=torch.bool)
    listed[chosen.long()] = True
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert listed[scores > margin].all()
    assert not listed[scores < -margin].any()


@pytest.mark.parametrize("cap", [1, 2, 50, 10_000])
def test_a_cap_keeps_the_highest_scores(cpu: Cpu, cap: int, rng: torch.Generator):
    scores = normal(rng, 700)
    operands = scored(scores.tolist())
    chosen = active_set(*operands, cap=cap, cpu=cpu)
    n_positive = int((scores > 0).sum())
    assert len(chosen) == min(cap, n_positive)
    assert chosen.tolist() == sorted(scores.argsort(descending=True)[: len(chosen)].tolist())


def test_ties_go_to_the_lower_index(cpu: Cpu):
    operands = scored([1.0, 2.0, 1.0, -1.0, 1.0, 2.0, 1.0])
    assert active_set(*operands, cap=4, cpu=cpu).tolist() == [0, 1, 2, 5]
    assert active_set(*operands, cap=1, cpu=cpu).tolist() == [1]


def test_ties_at_the_cap_agree_with_the_definition(cpu: Cpu, rng: torch.Generator):
    scores = torch.randint(-2, 4, (900,), generator=rng).float()
    operands = scored(scores.tolist())
    for cap in (1, 99, 300, 450):
        expected = active_set_reference(operands[0], operands[1].weight, operands[2].weight, operands[3], cap)
        assert active_set(*operands, cap=cap, cpu=cpu).tolist() == expected.tolist()


def test_none_and_all(cpu: Cpu):
    assert active_set(*scored([-1.0] * 300), cpu=cpu).tolist() == []
    assert active_set(*scored([1.0] * 300), cpu=cpu).tolist() == list(range(300))


def test_zero_is_not_above_zero(cpu: Cpu):
    assert active_set(*scored([0.0, -0.0, 1e-30, -torch.inf, torch.inf]), cpu=cpu).tolist() == [2, 4]


def test_a_broken_score_is_selected_first(cpu: Cpu):
    operands = scored([1.0, torch.nan, 3.0, -1.0, torch.nan])
    assert active_set(*operands, cpu=cpu).tolist() == [0, 1, 2, 4]
    assert active_set(*operands, cap=2, cpu=cpu).tolist() == [1, 4]


@pytest.mark.compiled
def test_threads_do_not_change_a_neuron(isa: str, dtype: torch.dtype, rng: torch.Generator):
    x, p1, p2, bias = predictor(rng, 200, 40, 3000, dtype)
    once = active_set(x, p1, p2, bias, cap=700, cpu=opened(isa, 1))
    for threads in (2, 3):
        for _ in range(10):
            assert torch.equal(active_set(x, p1, p2, bias, cap=700, cpu=opened(isa, threads)), once)


def test_refuses_ranks_that_do_not_chain(cpu: Cpu):
    with pytest.raises(UsageError, match="rank"):
        active_set(
            torch.zeros(8), Matrix(torch.zeros(3, 8)), Matrix(torch.zeros(9, 4)), torch.zeros(9), cpu=cpu
        )


@pytest.mark.parametrize("cap", [-1, -100])
def test_refuses_a_negative_cap(cpu: Cpu, cap: int):
    with pytest.raises(UsageError, match="cap"):
        active_set(*scored([1.0]), cap=cap, cpu=cpu)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("x", "rank", "bias", "indices"), [(7, 3, 9, 9), (8, 4, 9, 9), (8, 3, 8, 9), (8, 3, 9, 8)]
)
def test_the_hot_call_checks_lengths(isa: str, x: int, rank: int, bias: int, indices: int):
    p1, p2 = Matrix(torch.zeros(3, 8)), Matrix(torch.zeros(9, rank))
    arrays = np.zeros((1, x), np.float32), np.zeros(bias, np.float32), np.zeros((1, indices), np.int32)
    with pytest.raises(ValueError, match="expected"):
        opened(isa, 1).active_set(arrays[0], p1, p2, arrays[1], 0, arrays[2], np.zeros(1, np.int64))


@pytest.mark.parametrize(("width", "rank", "neurons"), SIZES)
def test_int8_agrees_with_the_matrix_it_stands_for(
    cpu: Cpu, width: int, rank: int, neurons: int, rng: torch.Generator
):
    x, p1, p2, bias = predictor(rng, width, rank, neurons, torch.float32)
    down, up = QuantisedMatrix.of(p1.weight), QuantisedMatrix.of(p2.weight)
    chosen = active_set(x, down, up, bias, cpu=cpu)
    scores = up.weight.double() @ (down.weight.double() @ x.double()) + bias.double()
    listed = torch.zeros(neurons, dtype=torch.bool)
    listed[chosen.long()] = True
    assert listed[scores > 1e-5].all()
    assert not listed[scores < -1e-5].any()
