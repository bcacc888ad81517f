"""How many inputs the fuzzers try: 20,000 in the suite, always the same; `make fuzz` a million others."""

import pytest

IN_SUITE = 20_000


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-inputs", type=int, default=IN_SUITE, help="inputs of all fuzzers together")


@pytest.fixture
def n_inputs(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--fuzz-inputs", IN_SUITE)
