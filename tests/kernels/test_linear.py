"""Linear agrees with its definition, for every instruction set, dtype and number of threads."""

import numpy as np
import pytest
import torch

from tests.kernels.cases import SPLIT, assert_close, normal
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import Cpu, Matrix, linear
from winnow.kernels.linear import linear_reference

SIZES = [(1, 8), (7, 1), (17, 40), (200, 136), (8, 64), (33, 300), (1000, 257), (50, 2056)]


@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_agrees_with_its_definition(
    cpu: Cpu, dtype: torch.dtype, rows: int, width: int, rng: torch.Generator
):
    x, weight, bias = normal(rng, width), normal(rng, rows, width, dtype=dtype), normal(rng, rows)
    y = linear(x, Matrix(weight), bias, cpu=cpu)
    expected = linear_reference(x.double(), weight, bias)
    scale = (weight.double().abs() @ x.double().abs()).max().item()  # terms may cancel
    assert_close(y, expected, relative=SPLIT, scale=scale)


def test_the_bias_may_be_left_out(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    x, weight = normal(rng, 40), normal(rng, 17, 40, dtype=dtype)
    assert_close(
        linear(x, Matrix(weight), cpu=cpu), linear_reference(x.double(), weight, None), relative=SPLIT
    )


def test_reads_rows_of_a_wider_matrix_where_they_lie(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    x, wide = normal(rng, 40), normal(rng, 100, 64, dtype=dtype)
    part = wide[3::7, 5:45]
    assert_close(linear(x, Matrix(part), cpu=cpu), linear_reference(x.double(), part, None), relative=SPLIT)


def test_the_input_is_not_rounded_to_bfloat16(cpu: Cpu, rng: torch.Generator):
    x = torch.cat([torch.tensor([1.0 + 2**-8, 1.0 - 2**-14, -3e-30, 65504.0]), normal(rng, 65)])
    y = linear(x, Matrix(torch.eye(69, dtype=torch.bfloat16)), cpu=cpu)
    assert ((y - x).abs() <= 2**-16 * x.abs()).all()


def test_an_infinite_input_stays_infinite(cpu: Cpu, dtype: torch.dtype):
    x = torch.tensor([torch.inf, 1.0, -torch.inf])
    weight = torch.tensor([[2.0, 1.0, -1.0], [0.5, 0.0, -2.0]], dtype=dtype)
    assert linear(x, Matrix(weight), cpu=cpu).tolist() == [torch.inf, torch.inf]


def test_what_is_not_a_number_reaches_its_row_only(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    weight = normal(rng, 20, 70, dtype=dtype)
    weight[11, 66] = torch.nan
    y = linear(normal(rng, 70), Matrix(weight), cpu=cpu)
    assert y.isnan().nonzero().squeeze(1).tolist() == [11]


def test_a_broken_input_breaks_every_row(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    x = normal(rng, 70)
    x[69] = torch.nan
    assert linear(x, Matrix(normal(rng, 20, 70, dtype=dtype)), cpu=cpu).isnan().all()


def test_reads_nothing_beyond_a_row(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    wide = torch.full((20, 80), torch.nan, dtype=dtype)
    wide[:, :73] = normal(rng, 20, 73, dtype=dtype)
    assert linear(normal(rng, 73), Matrix(wide[:, :73]), cpu=cpu).isfinite().all()


@pytest.mark.compiled
def test_threads_do_not_change_a_bit(isa: str, dtype: torch.dtype, rng: torch.Generator):
    x, matrix = normal(rng, 513), Matrix(normal(rng, 3001, 513, dtype=dtype))
    once = linear(x, matrix, cpu=opened(isa, 1))
    for threads in (2, 3):
        for _ in range(10):
            assert torch.equal(linear(x, matrix, cpu=opened(isa, threads)), once)


@pytest.mark.parametrize(
    ("x", "bias"),
    [
        (torch.zeros(39), None),
        (torch.zeros(41), None),
        (torch.zeros(40, dtype=torch.float64), None),
        (torch.zeros(40), torch.zeros(16)),
        (torch.zeros(40), torch.zeros(18)),
    ],
)
def test_refuses_other_lengths_and_dtypes(cpu: Cpu, x: torch.Tensor, bias: torch.Tensor | None):
    with pytest.raises((UsageError, TypeError)):  # TypeError: the test run checks annotations first
        linear(x, Matrix(torch.zeros(17, 40)), bias, cpu=cpu)


@pytest.mark.compiled
@pytest.mark.parametrize(("width", "rows", "bias"), [(39, 17, 17), (40, 16, 17), (40, 17, 18)])
def test_the_hot_call_checks_lengths(isa: str, width: int, rows: int, bias: int):
    x, shift, out = (
        np.zeros((1, width), np.float32),
        np.zeros(bias, np.float32),
        np.zeros((1, rows), np.float32),
    )
    with pytest.raises(ValueError, match="expected"):
        opened(isa, 1).linear(x, Matrix(torch.zeros(17, 40)), shift, out)


@pytest.mark.compiled
@pytest.mark.parametrize(
    "out", [np.zeros((1, 17)), np.zeros((1, 34), np.float32)[:, ::2], np.zeros(17, np.float32)]
)
def test_the_hot_call_refuses_arrays_it_would_have_to_copy(isa: str, out: np.ndarray):
    with pytest.raises(TypeError):
        opened(isa, 1).linear(np.zeros((1, 40), np.float32), Matrix(torch.zeros(17, 40)), None, out)
