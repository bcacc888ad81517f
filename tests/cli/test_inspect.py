"""inspect, explain and the refusal of precisions, on plans of every kind."""

import json
import shutil

import pytest
import torch

from tests.cli import checkpoint
from tests.cli.conftest import assert_one_line
from tests.engine.predictors import gates, low_rank
from winnow.base.rng import generator
from winnow.engine import Checkpoint, bundled, load_weights
from winnow.engine.sparsity import LayerCounts, Lookahead, Plan
from winnow.engine.sparsity.plan import FILE_NAME, Provenance

COUNTS = LayerCounts(0.25, 0.125, 0.96, 0.5, 0.999)


def planned(directory, make, precisions=("fp32", "bf16"), quality=True):
    """Put a plan of the layers that `make` returns beside the weights; return the directory."""
    opened = Checkpoint.open(directory)
    layers = tuple(make(load_weights(opened, torch.float32)))
    said = Provenance(
        opened.content_hash(), "b" * 64, "same-layer", "auto", 1e-3, 5e-4, 0.2, 0.99, 100, precisions
    )
    Plan(said, layers, (COUNTS,) * len(layers) if quality else ()).save(directory / FILE_NAME)
    return directory


@pytest.fixture(scope="module")
def ahead(tmp_path_factory):
    directory = checkpoint.write(tmp_path_factory.mktemp("ahead") / "tiny")
    return planned(directory, lambda weights: (None, low_rank(weights, generator(1), Lookahead.NEXT)[1]))


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    directory = shutil.copytree(bundled("pico-llama"), tmp_path_factory.mktemp("gated") / "llama")
    return planned(directory, lambda weights: gates(weights, 0.05))


def test_each_layer_says_its_kind_what_it_reads_and_what_was_counted(winnow, ahead):
    dense, looking = json.loads(winnow("inspect", ahead, "--json").out)["plan"]["layers"]
    counted = {"density": 0.25, "fired": 0.125, "recall": 0.96, "precision": 0.5, "weighted_recall": 0.999}
    assert dense == {
        "kind": "dense",
        "lookahead": None,
        "rank": None,
        "signs": None,
        "bytes": 0,
        "share": 0.0,
        **counted,
    }
    n_bytes = 7 * (checkpoint.WIDTH + checkpoint.N_NEURONS) + 4 * (7 + 2 * checkpoint.N_NEURONS)
    share = n_bytes / (2 * 2 * checkpoint.WIDTH * checkpoint.N_NEURONS)
    held = {
        "kind": "svd",
        "lookahead": "next-layer",
        "rank": 7,
        "signs": None,
        "bytes": n_bytes,
        "share": share,
    }
    assert looking == {**held, **counted}


def test_the_table_shows_the_same(winnow, ahead):
    ran = winnow("inspect", ahead)
    rows = [line.split() for line in ran.out.splitlines() if line.startswith("│ ")]
    assert [row[3] for row in rows] == ["dense", "svd"]
    assert "next-layer" in rows[1]
    assert all(each in " ".join(rows[1]) for each in ("25.0 %", "96.0 %", "50.0 %", "99.9 %"))
    assert "for fp32, bf16" in ran.out


def test_a_plan_that_was_not_measured_shows_blanks(winnow, tmp_path):
    directory = planned(checkpoint.write(tmp_path / "tiny"), lambda weights: (None, None), quality=False)
    layers = json.loads(winnow("inspect", directory, "--json").out)["plan"]["layers"]
    assert [layer["recall"] for layer in layers] == [None, None]
    assert winnow("inspect", directory).code == 0


def test_gates_are_inspected_run_and_explained(winnow, gated):
    layers = json.loads(winnow("inspect", gated, "--json").out)["plan"]["layers"]
    assert {(layer["kind"], layer["lookahead"], layer["rank"]) for layer in layers} == {
        ("gate", "same-layer", None)
    }
    ran = winnow(
        "generate", gated, "Once", "--max-tokens", 6, "--ignore-eos", "--explain", "--json", "--dtype", "fp32"
    )
    assert 0.05 < json.loads(ran.out)["stats"]["mlp_density"] < 0.95
    rows = [line for line in ran.err.splitlines() if "layer " in line]
    dense = {row.split("│")[5].strip() for row in rows}
    assert len(rows) == len(layers)
    # All layers read the same bytes when dense: the selected are taken off as they were counted.
    assert len(dense) == 1
    assert all(row.split("│")[4].strip() not in dense for row in rows)


def test_a_plan_refuses_a_precision_that_it_does_not_list(winnow, tmp_path):
    directory = planned(
        checkpoint.write(tmp_path / "tiny"), lambda weights: (None, None), precisions=("fp32",)
    )
    refused = winnow("generate", directory, "the wind", "--dtype", "bf16", "--max-tokens", 2)
    assert_one_line(refused, 2, "was made for fp32 weights, these are bf16")
    assert winnow("generate", directory, "the wind", "--dtype", "fp32", "--max-tokens", 2).code == 0
    assert (
        winnow("generate", directory, "the wind", "--dtype", "bf16", "--dense", "--max-tokens", 2).code == 0
    )
