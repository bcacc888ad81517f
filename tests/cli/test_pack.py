"""convert --pack: the command that packs, and the commands that find what it packed."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run, assert_one_line
from winnow.cli import main

LINE = ("the wind", "--max-tokens", 9, "--json", "--quiet")
FILE = "winnow-packed-int8.safetensors"


@pytest.fixture
def own(planned: Path, tmp_path: Path) -> Path:
    """A model with its plan that a test may change."""
    return shutil.copytree(planned, tmp_path / "own")


def answer(winnow: Run, directory: Path, *options: object) -> dict:
    ran = winnow("generate", directory, *LINE, *options)
    assert (ran.code, ran.err) == (0, ""), ran
    done = json.loads(ran.out)
    return {key: done[key] for key in ("text", "token_ids", "finish_reason")}


@pytest.mark.parametrize("options", [("bf16",), ("int8",), ("int4",), ("int4", "--head-dtype", "bf16")])
def test_what_is_packed_is_found_and_says_the_same(winnow: Run, own: Path, options: tuple[str, ...]) -> None:
    expected = answer(winnow, own, "--dtype", *options)
    done = json.loads(winnow("convert", own, "--pack", "--dtype", *options, "--json", "--quiet").out)
    assert Path(done["file"]).parent == own and done["bytes"] > 0 and done["by_head"] is False
    assert Path(done["file"]).name in winnow("inspect", own).out
    assert json.loads(winnow("inspect", own, "--json").out)["packed"][0]["problem"] == ""
    assert answer(winnow, own, "--dtype", *options) == expected


def test_bf16_is_packed_unless_another_type_is_asked(winnow: Run, own: Path) -> None:
    ran = winnow("convert", own, "--pack")
    assert ran.code == 0 and "winnow-packed-bf16.safetensors" in ran.out and "megabytes written" in ran.err
    assert winnow("generate", own, *LINE).err == ""


def test_a_file_elsewhere_is_named(winnow: Run, own: Path, tmp_path: Path) -> None:
    place = tmp_path / "another/place"
    assert winnow("convert", own, place, "--pack", "--dtype", "int8", "--quiet").code == 0
    assert [path.name for path in place.iterdir()] == [FILE]
    assert not (own / FILE).exists()
    options = ("--dtype", "int8", "--packed", place / FILE)
    assert answer(winnow, own, *options) == answer(winnow, own, "--dtype", "int8")
    assert_one_line(winnow("generate", own, *LINE, "--packed", place / FILE), 3, "dtype is 'int8'", "'bf16'")


def test_a_stale_file_is_said_once_and_the_answer_stays_right(winnow: Run, process: Run, own: Path) -> None:
    expected = answer(winnow, own, "--dtype", "int8")
    assert winnow("convert", own, "--pack", "--dtype", "int8", "--quiet").code == 0
    os.utime(own / "model.safetensors", (9, 9))
    ran = process("generate", own, *LINE, "--dtype", "int8")
    assert ran.code == 0
    assert ran.err.count("\n") == 1 and "made of other weights" in ran.err
    assert f"winnow convert {own} --pack --dtype int8" in ran.err
    assert json.loads(ran.out)["token_ids"] == expected["token_ids"]
    said = winnow("inspect", own)
    assert f"{FILE}, " in said.out and "does not fit" in said.out and "made of other weights" in said.err
    options = ("--dtype", "int8", "--packed", own / FILE)
    assert_one_line(winnow("generate", own, *LINE, *options), 3, "made of other weights")


def test_a_model_whose_plan_leaves_heads_out_is_packed_for_it(
    winnow: Run, model: Path, corpus: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(model, tmp_path / "heads")
    line = ["calibrate", directory, "--text", corpus, "--target-kld", 0.1, "--heads", 0.5, "--quiet"]
    assert main([*map(str, line), "--predictor", "svd", "--threads", "1"]) == 0
    expected = answer(winnow, directory)
    done = json.loads(winnow("convert", directory, "--pack", "--json", "--quiet").out)
    assert done["by_head"] and "by-head" in done["file"]
    assert answer(winnow, directory, "--packed", done["file"]) == answer(winnow, directory) == expected
    # Without the plan the map behind attention is laid out otherwise, and packed as it is loaded.
    assert winnow("generate", directory, *LINE, "--dense").err == ""


def test_other_commands_take_it_too(winnow: Run, own: Path, held_out: Path) -> None:
    line = ("fidelity", own, "--text", held_out, "--dtype", "bf16", "--json", "--quiet")
    expected = winnow(*line)
    for dtype in ("fp32", "bf16"):
        assert winnow("convert", own, "--pack", "--dtype", dtype, "--quiet").code == 0
    assert (winnow(*line).out, expected.code) == (expected.out, 0)


REFUSED = [
    (("--pack", "--dtype", "fp16"), 2, "--dtype is fp16"),
    ((), 2, "DST is missing"),
    (("new", "--head-dtype", "int8"), 2, "--head-dtype is for packed weights"),
    (("new", "--dtype", "int8"), 2, "expected one of fp32, fp16, bf16"),
    (("model.safetensors", "--pack"), 2, "cannot be written (File exists)"),
]


@pytest.mark.parametrize(("options", "code", "says"), REFUSED)
def test_what_makes_no_sense_is_refused_and_writes_nothing(
    winnow: Run, own: Path, options: tuple[str, ...], code: int, says: str
) -> None:
    before = sorted(own.iterdir())
    words = [own / word if not word.startswith("-") and "." in word else word for word in options]
    assert_one_line(winnow("convert", own, *words), code, says)
    assert sorted(own.iterdir()) == before
