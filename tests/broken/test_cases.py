"""Every broken input ends in one line and the right code, and the next good one works."""

import shutil
from pathlib import Path

import pytest

from tests.broken.cases import CASES, ELSEWHERE, Case
from tests.cli import checkpoint
from winnow.cli import main


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that every case damages a copy of."""
    return checkpoint.write(tmp_path_factory.mktemp("good") / "model")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number}-{case.name}")
def test_a_broken_input_ends_in_one_line_and_its_code(
    case: Case, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    at = shutil.copytree(good, tmp_path / "model")
    line = case.build(at, monkeypatch) or ("generate", at, "x", "--max-tokens", 2)
    before = sorted(tmp_path.iterdir())
    capfd.readouterr()
    code = main([str(word) for word in line])
    out, err = capfd.readouterr()
    assert code == case.code, err
    assert not [words for words in case.says if words not in err], err
    if case.code:
        assert out == "" and err.startswith("winnow: ") and err.count("\n") == 1, err
        assert len(err) < 1500 and err[:-1].isprintable(), err
    assert "Traceback" not in err and "panicked" not in err
    assert sorted(tmp_path.iterdir()) == before, "a refused command leaves nothing behind"


def test_every_number_of_the_list_has_a_case() -> None:
    assert {case.number for case in CASES} | {21} >= set(range(1, 31)) - ELSEWHERE.keys()
    assert {case.number for case in CASES} | ELSEWHERE.keys() | {21} == set(range(1, 31))


def test_no_two_cases_have_one_name() -> None:
    assert len({(case.number, case.name) for case in CASES}) == len(CASES)


def test_what_is_tested_elsewhere_is_there() -> None:
    root = Path(__file__).parents[2]
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert name.rstrip("*") in (root / file).read_text(), place


def test_the_same_process_serves_after_a_failure(good: Path, tmp_path: Path) -> None:
    assert main(["generate", str(tmp_path), "x"]) == 3
    assert main(["generate", str(good), "x", "--max-tokens", "2"]) == 0
