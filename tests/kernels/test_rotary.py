"""Rotation agrees with its definition and is one."""

import pytest
import torch

from tests.kernels.cases import assert_close, normal
from winnow.base.errors import UsageError
from winnow.kernels import Cpu
from winnow.kernels.rotary import rotate, rotate_reference


@pytest.mark.parametrize(("heads", "width"), [(1, 2), (4, 8), (3, 20), (5, 64), (2, 128), (3, 70)])
def test_agrees_with_its_definition(cpu: Cpu, heads: int, width: int, rng: torch.Generator):
    x, angle = normal(rng, heads, width), normal(rng, width // 2)
    y = rotate(x, angle.cos(), angle.sin(), cpu=cpu)
    assert_close(y, rotate_reference(x.double(), angle.cos(), angle.sin()))


def test_turns_pairs_half_a_head_apart(cpu: Cpu):
    x, quarter = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([0.0, 0.0])
    assert rotate(x, quarter, quarter + 1, cpu=cpu).tolist() == [[-3.0, -4.0, 1.0, 2.0]]


def test_keeps_lengths_and_its_argument(cpu: Cpu, rng: torch.Generator):
    x, angle = normal(rng, 3, 40), normal(rng, 20)
    before = x.clone()
    y = rotate(x, angle.cos(), angle.sin(), cpu=cpu)
    assert torch.allclose(y.norm(dim=1), x.norm(dim=1), rtol=1e-6)
    assert torch.equal(x, before)


@pytest.mark.parametrize("width", [1, 7, 41])
def test_refuses_an_odd_head(cpu: Cpu, width: int):
    half = torch.zeros(width // 2)
    with pytest.raises(UsageError, match="even"):
        rotate(torch.zeros(2, width), half, half, cpu=cpu)
