import json
import sys

import pytest

from tests.cli.conftest import assert_one_line
from winnow.engine.synthetic import OPT_SHAPES

MACHINE = {"cpu", "threads", "read_gb_per_s", "commit"}
ROW = {
    "engine",
    "shape",
    "dtype",
    "mlp_density",
    "head_density",
    "prompt_tokens",
    "tokens_per_second",
    "ms_per_token",
    "ttft_s",
    "bytes_per_token",
    "gb_per_s",
    "bandwidth_share",
    "rss_bytes",
}
SHORT = ("--repeats", 1, "--max-tokens", 3, "--prompt-tokens", 11, "--threads", 1, "--quiet")


@pytest.fixture
def tiny_shape(monkeypatch):
    """A shape that is timed in milliseconds."""
    monkeypatch.setitem(OPT_SHAPES, "tiny", (2, 64, 4))
    return "tiny"


def test_json_has_the_published_keys(winnow, planned):
    report = json.loads(winnow("bench", planned, *SHORT, "--json").out)
    assert set(report) >= {"machine", "rows"}
    assert set(report["machine"]) >= MACHINE
    assert all(set(row) >= ROW for row in report["rows"])
    assert [row["engine"] for row in report["rows"]] == ["winnow-dense", "winnow-sparse"]
    assert [row["mlp_density"] < 0.9 for row in report["rows"]] == [False, True]
    assert all(row["prompt_tokens"] == 11 and row["shape"] == "planned" for row in report["rows"])


def test_hf_runs_beside_on_the_same_checkpoint(winnow, model):
    ran = winnow("bench", model, *SHORT, "--against", "hf")
    assert ran.code == 0
    rows = [line.split()[1] for line in ran.out.splitlines() if line.startswith("│ ")]
    assert rows == ["winnow-dense", "hf"]
    assert "planned" not in ran.out
    assert "tiny, 11 tokens read" in ran.out


def test_shape_is_random_and_its_density_is_the_one_asked_for(winnow, tiny_shape):
    ran = winnow(
        "bench", "--shape", tiny_shape, "--density", 0.2, *SHORT[:2], *SHORT[4:], "--json", "--max-tokens", 20
    )
    report = json.loads(ran.out)
    assert [row["engine"] for row in report["rows"]] == ["winnow-dense", "winnow-sparse"]
    assert report["rows"][1]["mlp_density"] == pytest.approx(0.2, abs=0.05)
    assert (ran.code, bool(report["failures"])) in ((0, False), (1, True))
    assert ran.err.count("this run is void: ") == len(report["failures"])


def test_prompt_is_the_beginning_of_the_text(winnow, model, held_out, tmp_path):
    assert winnow("bench", model, *SHORT, "--text", held_out).code == 0
    (tmp_path / "short.txt").write_text("wind")
    ran = winnow("bench", model, *SHORT, "--text", tmp_path / "short.txt")
    assert_one_line(ran, 2, "expected 11; give a longer --text")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--shape", "opt-0.1b"), "expected one of opt-125m"),
        (("--shape", "tiny", "--density", "1.5"), "--density is 1.5"),
        (("--shape", "tiny", "--density", "nan"), "--density is nan"),
        (("a-model", "--shape", "tiny"), "received MODEL and --shape"),
    ],
)
def test_benches_that_mean_nothing_are_refused(winnow, tiny_shape, options, says):
    assert_one_line(winnow("bench", *options), 2, says)


def test_shape_beyond_memory_is_refused_before_it_is_drawn(winnow, tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 9000000 kB\n")
    monkeypatch.setattr("winnow.base.room.ROOT", tmp_path)
    assert_one_line(winnow("bench", "--shape", "opt-13b"), 4, "opt-13b needs", "9.22 GB are free")


def test_without_transformers_hf_says_what_to_install(winnow, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "winnow.engine.bench.hf", raising=False)
    assert_one_line(winnow("bench", model, *SHORT, "--against", "hf"), 4, "pip install 'winnow-llm[hf]'")
