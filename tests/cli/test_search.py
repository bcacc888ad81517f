"""winnow search: files in, pairs out."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.search.planted import by_definition, planted_signs
from winnow.cli import main

RHO = 0.6


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return planted_signs(1, 200, 256, RHO, 30)[0]


@pytest.fixture
def files(tmp_path: Path, vectors: np.ndarray) -> tuple[str, str, str]:
    paths = tuple(str(tmp_path / name) for name in ("all.npy", "a.npy", "b.npy"))
    for path, rows in zip(paths, (vectors, vectors[:80], vectors[80:]), strict=True):
        np.save(path, rows)
    return paths


def test_json_has_the_promised_keys(files, vectors: np.ndarray, capsys):
    assert main(["search", files[0], "--rho", "0.6", "--method", "exact", "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [tuple(pair) for pair in said["pairs"]] == by_definition(vectors, None, RHO)
    assert {"method", "recall_interval", "candidates", "multiply_adds", "seconds"} <= said["report"].keys()
    assert said["report"]["method"] == "exact"


def test_two_files_are_searched_against_each_other(files, vectors: np.ndarray, capsys):
    assert main(["search", *files[1:], "--rho", "0.6", "--recall", "0.9999", "--json", "--quiet"]) == 0
    expected = by_definition(vectors[:80], vectors[80:], RHO)
    assert len(expected) > 5
    assert [tuple(pair) for pair in json.loads(capsys.readouterr().out)["pairs"]] == expected


@pytest.mark.parametrize("suffix", ["csv", "npy"])
def test_out_holds_all_pairs(files, vectors: np.ndarray, tmp_path: Path, capsys, suffix: str):
    out = tmp_path / f"pairs.{suffix}"
    assert main(["search", files[0], "--rho", "0.6", "--method", "exact", "--out", str(out), "--quiet"]) == 0
    if suffix == "csv":
        rows = [tuple(map(int, line.split(","))) for line in out.read_text().splitlines()[1:]]
    else:
        rows = [tuple(row) for row in np.load(out, allow_pickle=False).tolist()]
    assert rows == by_definition(vectors, None, RHO)
    assert str(out) in capsys.readouterr().out


def test_a_person_reads_the_recall_and_the_first_pairs(files, vectors: np.ndarray, capsys):
    assert main(["search", files[0], "--rho", "0.6", "--method", "cascade"]) == 0
    said = capsys.readouterr()
    i, j, product = by_definition(vectors, None, RHO)[0]
    assert f"\n{i} {j} {product}\n" in said.out
    assert "95 % interval" in said.out
    assert "searched" in said.err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["all.npy"], 2, "--rho"),
        (["all.npy", "--rho", "2"], 2, "rho"),
        (["all.npy", "--rho", "0.05"], 2, "chance"),
        (["none.npy", "--rho", "0.5"], 3, "none.npy"),
        (["text.npy", "--rho", "0.5"], 3, "numpy.save"),
        (["objects.npy", "--rho", "0.5"], 3, "numpy.save"),
        (["all.npy", "--rho", "0.5", "--out", "pairs.txt"], 2, ".csv"),
        (["--rho", "0.5"], 2, "B"),
    ],
)
def test_what_is_off_is_one_line_and_a_code(files, tmp_path, monkeypatch, capsys, words, code, told):
    monkeypatch.chdir(tmp_path)
    Path("text.npy").write_text("no array", encoding="utf-8")
    with Path("objects.npy").open("wb") as file:  # an array of Python objects, as its header says
        header = {"descr": "|O", "fortran_order": False, "shape": (1, 1)}
        np.lib.format.write_array_header_1_0(file, header)
    assert main(["search", *words]) == code
    said = capsys.readouterr().err.strip()
    assert told in said
    assert len(said.splitlines()) == 1
