"""Fixtures shared by all tests, and the one place where the suite is set up."""

import sys
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that tests share code as tests.x.y, and benchmarks can be imported

# Examples are drawn from the test's name, not from the clock; a slow machine is not a failure.
hypothesis.settings.register_profile("winnow", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("winnow")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rng-seed", type=int, default=0, help="seed of the rng fixture")


def pytest_report_header(config: pytest.Config) -> str:
    return f"rng fixture: seed {config.getoption('--rng-seed')} (--rng-seed N to change)"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """A fresh generator for each test, on the CPU; its seed stands in the header."""
    from winnow.base.rng import generator

    return generator(request.config.getoption("--rng-seed"))


@pytest.fixture(scope="session")
def pico() -> Path:
    """The directory of the bundled model."""
    return ROOT / "src/winnow/zoo/pico"
