"""calibrate --heads: plans that leave heads out, and the commands that run and show them."""

import json
import shutil

import pytest

from tests.cli.conftest import assert_one_line
from winnow.cli import main

QUICK = ("--predictor", "svd", "--threads", 1, "--quiet")


@pytest.fixture(scope="module")
def half(model, corpus, tmp_path_factory):
    """A plan of the tiny model that keeps half of the heads, beside the weights."""
    directory = tmp_path_factory.mktemp("heads") / "half"
    shutil.copytree(model, directory)
    line = ["calibrate", directory, "--text", corpus, "--target-kld", 0.1, "--heads", 0.5, *QUICK]
    assert main([str(word) for word in line]) == 0
    return directory


def test_fidelity_generate_and_inspect_show_the_heads(winnow, half, held_out):
    found = json.loads(winnow("fidelity", half, "--text", held_out, "--json", "--quiet").out)
    assert 0.3 < found["head_density"] < 0.7
    done = json.loads(winnow("generate", half, "the wind", "--json", "--dtype", "fp32", "--quiet").out)
    assert 0.2 < done["stats"]["head_density"] < 0.8
    assert ", heads " in winnow("generate", half, "the wind", "--max-tokens", 4).err
    assert "head density" in winnow("inspect", half).out
    plan = json.loads(winnow("inspect", half, "--json").out)["plan"]
    assert 0.3 < plan["measured_head_density"] < 0.7


def test_lazy_keys_and_values_matter_to_such_a_plan(winnow, half, planned):
    line = ("the wind", "--max-tokens", 12, "--dtype", "fp32", "--threads", 1)
    dense, lazy = (winnow("generate", half, *line, "--kv", kv) for kv in ("dense", "lazy"))
    assert (dense.code, lazy.code) == (0, 0)
    assert lazy.out == dense.out
    assert "--kv lazy changes nothing" not in lazy.err
    assert "--kv lazy changes nothing" in winnow("generate", planned, *line, "--kv", "lazy").err


def test_bare_heads_says_when_no_share_pays_and_writes_a_plan_with_all(winnow, model, corpus, tmp_path):
    out = tmp_path / "plan"
    line = ("calibrate", model, "--text", corpus, "--out", out, "--target-kld", 1e-6, *QUICK[:-1])
    ran = winnow(*line, "--heads")
    assert ran.code == 0
    said = [row for row in ran.err.splitlines() if "no share of the heads pays" in row]
    assert len(said) == 1
    assert "head density" not in ran.out
    with_none = out.read_bytes()
    assert winnow(*line, "--heads", 0.5, "--no-heads").code == 0
    assert out.read_bytes() == with_none


def test_a_share_that_misses_the_target_is_said(winnow, model, corpus, tmp_path):
    line = ("calibrate", model, "--text", corpus, "--out", tmp_path / "plan", *QUICK[:-1])
    ran = winnow(*line, "--target-kld", 0.001, "--heads", 0.5)
    assert ran.code == 0
    assert "head density" in ran.out
    assert "the plan misses its target, as --heads 0.5 asks" in ran.err


@pytest.mark.parametrize("share", ["0", "1", "1.5", "nan", "-0.2"])
def test_shares_outside_their_range_are_refused_before_anything_is_read(winnow, tmp_path, share):
    ran = winnow("calibrate", "--text", tmp_path / "none.txt", f"--heads={share}")
    assert_one_line(ran, 2, "--heads", "expected one between 0 and 1")


def test_a_model_behind_bare_heads_is_refused_with_the_way_out(winnow, tmp_path):
    ran = winnow("calibrate", "--heads", "pico", "--text", tmp_path / "none.txt")
    assert_one_line(ran, 2, "give MODEL before a bare --heads")
