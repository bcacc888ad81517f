"""Numbers: every figure of README and docs equals committed JSON, which names its machine and commit."""

import json
import subprocess
from pathlib import Path

import pytest
from benchmarks import tables
from benchmarks.tables import TableError, documents, lookup, render, table

from tests.house.source import ROOT

RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))
PROVENANCE = ("cpu", "threads", "read_gb_per_s", "commit")


@pytest.mark.parametrize("path", documents(), ids=lambda p: p.name)
def test_every_figure_equals_its_result_file(path):
    text = path.read_text(encoding="utf-8")
    assert text == render(text), f"{path.name} is not current: run scripts/tables"


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.name)
def test_every_result_names_its_machine_and_commit(path):
    machine = json.loads(path.read_text(encoding="utf-8")).get("machine", {})
    missing = [key for key in PROVENANCE if machine.get(key) in (None, "", "unknown")]
    assert not missing, f"{path.name}: machine lacks {', '.join(missing)}"


RESULT = {
    "machine": {"commit": "abc"},
    "rows": [
        {"engine": "hf", "tokens_per_second": 4.0, "bytes_per_token": 2_500_000},
        {"engine": "llama.cpp", "tokens_per_second": 26.5, "mlp_density": 0.1},
    ],
}


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "x.json").write_text(json.dumps(RESULT))
    return tmp_path


SHOWN = {
    "machine.commit": "abc",
    "rows[1].tokens_per_second as .1f": "26.5",
    "rows[engine=llama.cpp].mlp_density as .0%": "10%",
    "rows[engine=llama.cpp].tokens_per_second / rows[engine=hf].tokens_per_second as .2f": "6.62",
}


@pytest.mark.parametrize(("key", "shown"), SHOWN.items(), ids=SHOWN)
def test_a_figure_is_rendered_in_place_and_stays(root, key, shown):
    once = render(f"It is <!-- from x.json: {key} -->old<!-- end -->, so.", root)
    assert once == f"It is <!-- from x.json: {key} -->{shown}<!-- end -->, so."
    assert render(once, root) == once


def test_a_table_is_rendered_with_units_and_dashes_for_gaps(root):
    marker = "<!-- from x.json: rows as table engine, bytes_per_token, mlp_density -->"
    assert render(f"{marker}<!-- end -->", root).splitlines() == [
        marker,
        "| engine | MB/token | MLP density |",
        "| --- | ---: | ---: |",
        "| hf | 2.5 | - |",
        "| llama.cpp | - | 0.10 |",
        "<!-- end -->",
    ]


def test_a_field_without_a_column_is_shown_by_its_own_name():
    assert table([{"new_thing": 3}], ["new_thing"]) == "| new thing |\n| ---: |\n| 3 |"


WRONG = {
    "missing.json: rows": "run the benchmark",
    "x.json: machine.cpu": "leads nowhere at `.cpu`",
    "x.json: rows[7].engine": "leads nowhere",
    "x.json: rows[engine=vllm].engine": "0 rows have engine=vllm",
    "x.json: rows//engine": "is no path",
}


@pytest.mark.parametrize(("marker", "says"), WRONG.items(), ids=WRONG)
def test_a_marker_that_finds_nothing_is_an_error(root, marker, says):
    with pytest.raises(TableError, match=says.replace("[", r"\[")):
        render(f"<!-- from {marker} -->x<!-- end -->", root)


@pytest.mark.parametrize(
    "text", ["<!-- from x.json: machine.commit -->abc", "<!-- from x.json -->x<!-- end -->"]
)
def test_a_malformed_marker_is_an_error(root, text):
    with pytest.raises(TableError, match="malformed or has no"):
        render(text, root)


def test_an_ambiguous_row_is_an_error():
    with pytest.raises(TableError, match="2 rows have a=1"):
        lookup([{"a": 1}, {"a": 1}], "[a=1]")


def test_the_check_names_stale_documents_and_changes_nothing(root, monkeypatch, capsys):
    monkeypatch.setattr(tables, "ROOT", root)
    monkeypatch.setattr(tables, "documents", lambda: [root / "README.md"])
    monkeypatch.setattr(tables, "render", lambda text: render(text, root))
    stale = "<!-- from x.json: machine.commit -->old<!-- end -->"
    (root / "README.md").write_text(stale)
    assert tables.main(["--check"]) == 1
    assert capsys.readouterr().out == "README.md: not current\n"
    assert (root / "README.md").read_text() == stale
    assert tables.main([]) == 0
    assert (root / "README.md").read_text() == stale.replace("old", "abc")
    assert tables.main(["--check"]) == 0


def test_the_script_is_executable():
    subprocess.run(["test", "-x", ROOT / "scripts/tables"], check=True)
    assert "benchmarks.tables" in (ROOT / "scripts/tables").read_text()
