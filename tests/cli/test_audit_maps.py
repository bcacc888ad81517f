"""winnow audit attention and timing: from files on disk to a report and an exit code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.audit.map_models import build, maps, tokens
from tests.cli import checkpoint
from tests.cli.conftest import assert_one_line
from tests.house.source import ROOT
from winnow.cli import main
from winnow.cli.audit_options import SIGNALS

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hf") / "gpt2"
    build("gpt2").save_pretrained(directory)
    return directory


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "maps.safetensors"
    made = maps(build("gpt2"), tokens(9)).half()
    save_file({"layer.0": made.contiguous(), "layer.1": made.flip(0).contiguous()}, path)
    return path


def audit(*words: object) -> int:
    return main(["audit", "attention", *(str(word) for word in words)])


def test_a_file_of_maps_becomes_a_redacted_report(saved, dump, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert audit(saved, "--maps", dump, "--json", "--html", page) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["exact_match"], found["void"], found["recovered"][0]["text"]) == (1.0, False, None)
    assert found["details"]["precision"] == "fp16"
    assert "redacted" in page.read_text()


def test_the_text_is_shown_on_request_and_shuts_the_gate(saved, dump, capsys):
    assert audit(saved, "--maps", dump, "--show-text", "--fail-if", "exact_match>0") == 1
    assert " ".join(map(str, tokens(9).tolist())) in capsys.readouterr().out


def write(path: Path, how: str) -> Path:
    good = maps(build("gpt2"), tokens(9)).numpy()
    match how:
        case "cut.npy":
            np.save(path / how, good)
            (path / how).write_bytes((path / how).read_bytes()[:-100])
        case "cut.safetensors":
            save_file({"maps": torch.from_numpy(good)}, path / how)
            (path / how).write_bytes((path / how).read_bytes()[:-100])
        case "archive.safetensors":
            (path / how).write_bytes(b"PK\x03\x04" + bytes(100))
        case "two.safetensors":
            save_file({"a": torch.from_numpy(good), "b": torch.from_numpy(good.copy())}, path / how)
        case "whole.npy":
            np.save(path / how, np.ones((4, 9, 9), np.int64))
        case "nan.npy":
            good[0, 3, 0] = np.nan
            np.save(path / how, good)
    return path / how


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("cut.npy", "no array in a .npy file"),
        ("cut.safetensors", "no whole safetensors"),
        ("archive.safetensors", "pickle or an archive"),
        ("two.safetensors", "2 tensors"),
        ("whole.npy", "int64"),
        ("nan.npy", "NaN"),
        ("missing.npy", "cannot be read"),
    ],
)
def test_broken_files_are_refused_in_one_line(winnow, saved, tmp_path, how, says):
    assert_one_line(winnow("audit", "attention", saved, "--maps", write(tmp_path, how)), 3, says)


def test_a_pickled_array_is_refused_and_not_run(winnow, saved, tmp_path):
    path = tmp_path / "maps.npy"
    ran = tmp_path / "ran"
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    code = f"cbuiltins\nopen\n(S'{ran}'\nS'w'\ntR.".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + code)
    assert_one_line(winnow("audit", "attention", saved, "--maps", path), 3, "no array in a .npy file")
    assert not ran.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--fail-if", "exact_match"),
        ("--html", "report.pdf"),
        ("--first", "9999"),
        ("--anchors", "1"),
        ("--layer", "-1"),
        ("--top-k", "0"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_the_work(winnow, saved, dump, words):
    assert_one_line(winnow("audit", "attention", saved, "--maps", dump, *words), 2)


def test_a_directory_that_is_no_model_is_refused(winnow, tmp_path, dump):
    (tmp_path / "config.json").write_text('{"model_type": "nobody-knows"}')
    assert_one_line(winnow("audit", "attention", tmp_path, "--maps", dump), 3)


@pytest.mark.compiled
@pytest.mark.parametrize("signal", SIGNALS)
def test_the_engine_is_timed_on_every_topic(tmp_path, model, capsys, signal):
    directory = tmp_path / "model"
    shutil.copytree(model, directory)
    files = []
    for seed, topic in enumerate(("law", "sea")):
        (tmp_path / topic).write_text(checkpoint.text(400, seed))
        files += ["--text", f"{topic}={tmp_path / topic}"]
    words = [
        "--prompts",
        10,
        "--prompt-tokens",
        8,
        "--max-tokens",
        6,
        "--signal",
        signal,
        "--quiet",
        "--json",
    ]
    code = main(["audit", "timing", str(directory), *files, *map(str, words)])
    found = json.loads(capsys.readouterr().out)
    assert (found["audit"], code) == ("timing", int(found["void"]))
    # a machine that stalls during a third of ten prompts hides what is planted: a clock's word, not a count's
    assert signal == "latency" or not found["void"]
    assert [row[:2] for row in found["tables"][0]["rows"]] == [["law", 10], ["sea", 10]]


@pytest.mark.compiled
def test_active_neurons_tell_nothing_once_their_number_is_constant(tmp_path, capsys):
    book = (ROOT / "src/winnow/zoo/emerald-city-of-oz.txt").read_text(encoding="utf-8")
    (tmp_path / "oz").write_text(book[50_000:60_000], encoding="utf-8")
    (tmp_path / "digits").write_text("1 2 3 4 5 6 7 8 9 10 " * 400, encoding="utf-8")
    files = [word for topic in ("oz", "digits") for word in ("--text", f"{topic}={tmp_path / topic}")]
    words = ("--prompts", "12", "--max-tokens", "6", "--signal", "active", "--quiet", "--json")
    assert main(["audit", "timing", "pico", *files, *words]) == 0
    certificate = json.loads(capsys.readouterr().out)["certificate"]
    assert certificate["auc_low"] > 0.5
    assert certificate["constant_work_auc"] == 0.5


def test_a_topic_without_a_file_is_refused(winnow):
    assert_one_line(winnow("audit", "timing", "pico", "--text", "law"), 2, "TOPIC=FILE")
