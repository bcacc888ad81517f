"""Fixtures of the tests of attention."""

from collections.abc import Iterator

import jaxtyping
import pytest
import torch


@pytest.fixture
def gate_alone() -> Iterator[None]:
    """Turn off the shape checks that tests add to annotations, so that wrong shapes reach our own gate."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Give torch one thread: the tensors are small, and a second would only wait for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
