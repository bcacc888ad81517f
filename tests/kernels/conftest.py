"""Every implementation of the kernels that this machine has, each on one and on two threads."""

import pytest
import torch

from winnow.kernels import Cpu, isa_levels, native, open_cpu

COMPILED = [pytest.param((isa, n), id=f"{isa}-{n}") for isa in isa_levels() for n in (1, 2)] or [
    pytest.param(None, id="absent", marks=pytest.mark.skip("the package was installed without a compiler"))
]
OPENED: dict[tuple[str, int], Cpu] = {}


def opened(isa: str, threads: int) -> Cpu:
    """One object per choice for the whole session: what a long-lived process does."""
    if (isa, threads) not in OPENED:
        OPENED[isa, threads] = open_cpu(threads, isa)
    return OPENED[isa, threads]


@pytest.fixture(params=[pytest.param(("torch", 1), id="torch"), *COMPILED])
def cpu(request: pytest.FixtureRequest) -> Cpu:
    """The definitions, and every instruction set on one and on two threads."""
    return opened(*request.param)


@pytest.fixture(params=isa_levels() or COMPILED)
def isa(request: pytest.FixtureRequest) -> str:
    """Every compiled instruction set."""
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def without_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as it is where there was no compiler."""
    monkeypatch.setattr(native, "module", None)
