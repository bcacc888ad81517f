"""winnow fidelity: the rows that people read, the keys that programs read, and the sweep."""

import json
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import assert_one_line
from winnow.cli.fidelity import SHIFTS

ROWS = (
    "perplexity, dense",
    "perplexity, sparse",
    "sparse over dense",
    "correlation of ln ppl",
    "KLD, mean (nats)",
    "KLD, median",
    "KLD, 99.9 %",
    "KLD, largest",
    "same likeliest token",
    "p of the true token",
    "its RMS change",
    "MLP density",
    "predictor recall",
    "MLP bytes per token",
)


@pytest.fixture(scope="module")
def swept(planned, held_out, tmp_path_factory):
    """The object and the chart of one sweep."""
    import contextlib
    import io

    from winnow.cli import main

    path = tmp_path_factory.mktemp("sweep") / "deep" / "sweep.svg"
    out = io.StringIO()
    line = ["fidelity", planned, "--text", held_out, "--limit", 300, "--sweep", path, "--json", "--quiet"]
    with contextlib.redirect_stdout(out):
        assert main([str(word) for word in line]) == 0
    return json.loads(out.getvalue()), path


def test_every_row_is_shown_with_its_error(winnow, planned, held_out):
    ran = winnow("fidelity", planned, "--text", held_out, "--limit", 200, "--quiet")
    lines = {line.strip().split("  ")[0]: line for line in ran.out.splitlines()}
    assert all(row in lines for row in ROWS)
    assert sum("±" in line for line in lines.values()) == 6
    assert ran.err == ""


def test_a_sweep_holds_the_plan_itself_and_trades_bytes_for_divergence(swept):
    found, _ = swept
    rows = found["sweep"]
    assert [row["shift"] for row in rows] == list(SHIFTS)
    (own,) = [row for row in rows if row["shift"] == 0]
    assert {key: own[key] for key in ("kld_mean", "mlp_density")} == {
        key: found[key] for key in ("kld_mean", "mlp_density")
    }
    densities, losses = ([row[key] for row in rows] for key in ("mlp_density", "kld_mean"))
    assert densities == sorted(densities)
    assert losses[0] > 10 * losses[-1]


def test_the_chart_of_a_sweep_has_one_point_per_density(swept):
    found, path = swept
    root = ElementTree.fromstring(path.read_text())
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == len(SHIFTS)
    assert f"{found['tokens']} tokens of" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["sweep.svg"]


def test_a_sweep_for_people_is_a_table(winnow, planned, held_out, tmp_path):
    path = tmp_path / "s.svg"
    ran = winnow("fidelity", planned, "--text", held_out, "--limit", 99, "--sweep", path, "--quiet")
    assert f"drawn in {path}" in ran.out
    assert sum(line.startswith("│ ") for line in ran.out.splitlines()) == len(SHIFTS)
    assert sum("the plan's" in line for line in ran.out.splitlines() if line.startswith("│ ")) == 1


def test_a_sweep_that_is_no_svg_is_refused_before_anything_is_read(winnow, tmp_path):
    ran = winnow("fidelity", "--text", tmp_path / "none", "--sweep", tmp_path / "s.png")
    assert_one_line(ran, 2, "does not end in .svg")


def test_without_a_sweep_there_is_no_list(winnow, planned, held_out):
    found = json.loads(
        winnow("fidelity", planned, "--text", held_out, "--limit", 99, "--json", "--quiet").out
    )
    assert "sweep" not in found


def test_what_the_precision_costs_is_told_apart_from_what_the_plan_does(winnow, planned, held_out):
    line = ("fidelity", planned, "--text", held_out, "--limit", 99, "--quiet")
    exact, rough = (json.loads(winnow(*line, "--dtype", dtype, "--json").out) for dtype in ("fp32", "int8"))
    assert exact["kld_quantised"] is None
    assert 0 < rough["kld_quantised"] < 0.1
    assert rough["kld_mean"] == pytest.approx(exact["kld_mean"], rel=0.5)
    assert "KLD of its precision" in winnow(*line, "--dtype", "int8").out
