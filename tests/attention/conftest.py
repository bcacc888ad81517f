"""Fixtures of the tests of attention."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture
def gate_alone() -> Iterator[None]:
    """Turn off the shape checks that tests add to annotations, so that wrong shapes reach our own gate."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
