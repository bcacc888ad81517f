"""Code beside the weights is never run, whatever reads them."""

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import OPTForCausalLM

import winnow
from tests.broken import builders, plans
from tests.cli import checkpoint
from tests.engine.convert import bins
from winnow.cli import main

TRAPS = ("configuration_trap", "modeling_trap", "sitecustomize", "tokenizers", "safetensors")


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that asks for code of its own, which tells on whoever imports it."""
    at = checkpoint.write(tmp_path / "model")
    maps = {"AutoConfig": "configuration_trap.Trap", "AutoModelForCausalLM": "modeling_trap.Trap"}
    builders.config(at, monkeypatch, auto_map=maps)
    for name in TRAPS:
        (at / f"{name}.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.chdir(at)
    monkeypatch.syspath_prepend(at)
    return at


def assert_nothing_ran(at: Path) -> None:
    assert not (at.parent / "ran").exists()
    assert not any(str(at) in str(getattr(module, "__file__", "")) for module in list(sys.modules.values()))


def test_the_trap_tells_on_whoever_imports_it(trapped: Path) -> None:
    __import__("modeling_trap")
    assert (trapped.parent / "ran").exists()
    del sys.modules["modeling_trap"]


def test_loading_runs_none_of_it(trapped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(trapped), "x", "--max-tokens", "2"]) == 0
    assert main(["inspect", str(trapped)]) == 0
    assert capsys.readouterr().err.count("never runs it") == 2
    assert_nothing_ran(trapped)


def test_converting_runs_and_copies_none_of_it(trapped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bins.write_bin(trapped, load_file(trapped / "model.safetensors"), checkpoint.config())
    builders.config(trapped, pytest.MonkeyPatch(), auto_map={"AutoConfig": "configuration_trap.Trap"})
    (trapped / "model.safetensors").unlink()
    target = trapped.parent / "new"
    assert main(["convert", str(trapped), str(target)]) == 0
    assert "never runs it" in capsys.readouterr().err
    assert not list(target.glob("*.py"))
    assert_nothing_ran(trapped)


def test_sparsifying_runs_none_of_it(trapped: Path) -> None:
    plan = plans.write_plan(trapped)
    model = winnow.sparsify(OPTForCausalLM.from_pretrained(trapped), plan)
    assert model is not None
    assert_nothing_ran(trapped)
