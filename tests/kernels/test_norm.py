"""Norms agree with their definitions, and with torch's."""

import pytest
import torch

from tests.kernels.cases import assert_close, normal
from winnow.kernels import Cpu
from winnow.kernels.norm import layer_norm, layer_norm_reference, rms_norm, rms_norm_reference

SHAPES = [(1, 1), (1, 8), (3, 40), (2, 136), (1, 1000), (5, 2057)]


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_layer_norm_agrees_with_its_definition(cpu: Cpu, rows: int, width: int, rng: torch.Generator):
    x, weight, bias = normal(rng, rows, width) * 3 + 1, normal(rng, width), normal(rng, width)
    y = layer_norm(x, weight, bias, 1e-5, cpu=cpu)
    assert_close(y, layer_norm_reference(x.double(), weight, bias, 1e-5), relative=1e-5)


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_rms_norm_agrees_with_its_definition(cpu: Cpu, rows: int, width: int, rng: torch.Generator):
    x, weight = normal(rng, rows, width) * 3, normal(rng, width)
    assert_close(rms_norm(x, weight, 1e-6, cpu=cpu), rms_norm_reference(x.double(), weight, 1e-6))


def test_the_definitions_are_those_of_torch(rng: torch.Generator):
    x, weight, bias = (normal(rng, *shape).double() for shape in ((3, 40), (40,), (40,)))
    by_torch = torch.nn.functional.layer_norm(x, (40,), weight, bias, 1e-5)
    assert torch.allclose(layer_norm_reference(x, weight, bias, 1e-5), by_torch, rtol=1e-12)
    by_torch = torch.nn.functional.rms_norm(x, (40,), weight, 1e-5)
    assert torch.allclose(rms_norm_reference(x, weight, 1e-5), by_torch, rtol=1e-12)


def test_a_large_mean_costs_no_precision(cpu: Cpu, rng: torch.Generator):
    x, ones, zeros = normal(rng, 1, 2048) + 1000, torch.ones(2048), torch.zeros(2048)
    y = layer_norm(x, ones, zeros, 1e-5, cpu=cpu)
    assert_close(y, layer_norm_reference(x.double(), ones, zeros, 1e-5), relative=1e-3)


def test_eps_bounds_what_is_divided_by(cpu: Cpu):
    zeros, ones = torch.zeros(1, 40), torch.ones(40)
    assert layer_norm(zeros + 7, ones, ones, 1e-5, cpu=cpu).eq(1).all()
    assert rms_norm(zeros, ones, 1e-6, cpu=cpu).eq(0).all()


def test_the_output_may_be_the_input(cpu: Cpu, rng: torch.Generator):
    x, weight = normal(rng, 2, 136), normal(rng, 136)
    apart = rms_norm(x, weight, 1e-6, cpu=cpu)
    cpu.rms_norm(x.numpy(), weight.numpy(), 1e-6, x.numpy())
    assert torch.equal(x, apart)


def test_what_is_not_a_number_stays_in_its_row(cpu: Cpu, rng: torch.Generator):
    x, ones = normal(rng, 3, 50), torch.ones(50)
    x[1, 49] = torch.nan
    for y in (layer_norm(x, ones, ones, 1e-5, cpu=cpu), rms_norm(x, ones, 1e-5, cpu=cpu)):
        assert y.isnan().all(1).tolist() == [False, True, False]
        assert y.isnan().any(1).tolist() == [False, True, False]
