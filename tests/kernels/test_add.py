"""Adding one vector to another."""

import numpy as np
import pytest
import torch

from tests.kernels.cases import normal
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import Cpu
from winnow.kernels.add import add, add_reference


@pytest.mark.parametrize("width", [1, 7, 16, 33, 1000])
def test_has_the_bits_of_its_definition(cpu: Cpu, width: int, rng: torch.Generator):
    x, y = normal(rng, width), normal(rng, width)
    before = y.clone()
    assert torch.equal(add(x, y, cpu=cpu), add_reference(x, before))
    assert torch.equal(y, before)


def test_refuses_another_length(cpu: Cpu):
    with pytest.raises((UsageError, TypeError)):  # TypeError: the test run checks annotations first
        add(torch.zeros(3), torch.zeros(4), cpu=cpu)


@pytest.mark.compiled
def test_the_hot_call_checks_lengths(isa: str):
    with pytest.raises(ValueError, match="expected 3"):
        opened(isa, 1).add(np.zeros(3, np.float32), np.zeros(4, np.float32))
