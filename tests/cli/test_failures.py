import errno
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.cli import checkpoint
from tests.cli.conftest import PROCESS, assert_one_line
from winnow.base import room
from winnow.cli.failures import one_line, report
from winnow.engine.generate import Engine


def give_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_prompt_beyond_the_context_says_both_numbers(winnow, model):
    ran = winnow("generate", model, "grain " * 200)
    assert_one_line(ran, 2, f"the model has {checkpoint.N_POSITIONS} positions", "+ 64 =")


@pytest.mark.parametrize("option", ["--temperature", "--top-p", "--min-p", "--repetition-penalty"])
@pytest.mark.parametrize("value", ["nan", "-0.5", "1e9"])
def test_sampling_outside_its_range(winnow, model, option, value):
    assert_one_line(
        winnow("generate", model, "x", option, value), 2, option[2:].replace("-", "_"), "expected"
    )


@pytest.mark.parametrize("option", ["--seed", "--top-k"])
def test_negative_counts(winnow, model, option):
    assert_one_line(winnow("generate", model, "x", option, "-1"), 2, "-1", "expected")


def test_empty_stop_string(winnow, model):
    assert_one_line(winnow("generate", model, "x", "--stop", ""), 2, "stop string is empty")


def test_prompt_from_standard_input_is_the_prompt_given_as_a_word(winnow, model, monkeypatch):
    line = ("generate", model, "--max-tokens", 6, "--json")
    word = json.loads(winnow(*line, "schöner Wind").out)
    give_stdin(monkeypatch, "schöner Wind\r\n".encode())
    piped = json.loads(winnow(*line, "-").out)
    assert piped["token_ids"] == word["token_ids"]
    assert piped["prompt_tokens"] == word["prompt_tokens"]


def test_closed_standard_input(winnow, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert_one_line(winnow("generate", model, "-"), 2, "standard input is closed")


@pytest.mark.parametrize("content", [b"", b"\n", b"\x00\x00"])
def test_empty_and_nul_prompts_start_from_the_opening_token(winnow, model, monkeypatch, content):
    give_stdin(monkeypatch, content)
    ran = winnow("generate", model, "-", "--max-tokens", 3, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["prompt_tokens"] >= 1


def test_text_that_is_missing_a_folder_or_not_utf8(winnow, model, tmp_path):
    assert_one_line(
        winnow("perplexity", model, "--text", tmp_path / "none.txt"), 3, "none.txt", "Check --text"
    )
    assert_one_line(winnow("calibrate", model, "--text", tmp_path), 3, str(tmp_path), "Check --text")
    (tmp_path / "latin.txt").write_bytes(b"sch\xf6n")
    assert_one_line(winnow("fidelity", model, "--text", tmp_path / "latin.txt"), 3, "not UTF-8 at byte 3")


def test_empty_text(winnow, model, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert_one_line(winnow("perplexity", model, "--text", tmp_path / "empty.txt"), 2, "0 tokens", "--text")


def test_plan_of_another_model(winnow, planned, tmp_path):
    other = checkpoint.write(tmp_path / "other", seed=1)
    plan = planned / "winnow-plan.safetensors"
    assert_one_line(winnow("generate", other, "x", "--plan", plan), 3, "belongs to the model")
    shutil.copy(plan, other)
    assert_one_line(winnow("generate", other, "x"), 3, "belongs to the model")
    assert_one_line(winnow("inspect", other), 3, "belongs to the model")
    assert winnow("generate", other, "x", "--dense", "--max-tokens", 2).code == 0


def test_plan_that_is_missing_or_broken(winnow, model, held_out, tmp_path):
    assert_one_line(winnow("generate", model, "x", "--plan", tmp_path / "none"), 3, "No plan at")
    assert_one_line(winnow("generate", model, "x", "--plan", held_out), 3, "is not a plan")


def test_fidelity_without_a_plan_says_how_to_make_one(winnow, model, held_out):
    assert_one_line(winnow("fidelity", model, "--text", held_out), 3, "winnow calibrate")


def test_memory_is_not_judged_where_the_system_does_not_say(winnow, model, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "ROOT", tmp_path)
    assert winnow("generate", model, "x", "--max-tokens", 2).code == 0


def test_interrupt_ends_in_one_line(winnow, model, monkeypatch):
    def interrupted(self, prompt, options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "run", interrupted)
    assert_one_line(winnow("generate", model, "x"), 130, "interrupted")


def test_reader_that_has_gone_away_is_no_failure(process, model):
    read_end, write_end = os.pipe()
    os.close(read_end)
    ran = process("generate", model, "x", stdout=write_end)
    os.close(write_end)
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_swallow_what_goes_to_them(model, closed):
    words = [sys.executable, "-c", PROCESS, "generate", str(model), "x", "--max-tokens", "2", "--explain"]
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *words], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert bool(done.stdout) == (closed == "2>&-")
    assert bool(done.stderr) == (closed == ">&-")
    assert b"Traceback" not in done.stderr


def test_full_disk_ends_in_one_line(process, model):
    with Path("/dev/full").open("wb") as full:
        ran = process("generate", model, "x", stdout=full.fileno())
    assert_one_line(ran, 4, "No space left on device")


def test_directory_that_cannot_be_written(winnow, model, corpus, tmp_path):
    (tmp_path / "file").write_text("")
    ran = winnow("calibrate", model, "--text", corpus, "--quiet", "--out", tmp_path / "file" / "plan")
    assert_one_line(ran, 3, str(tmp_path / "file"))


def test_debug_adds_the_traceback_and_changes_nothing_else(winnow, tmp_path):
    plain, debug = (winnow("generate", tmp_path / "nowhere", "x", *options) for options in ((), ("--debug",)))
    assert debug.code == plain.code == 3
    assert "Traceback" in debug.err
    assert debug.err.endswith(plain.err)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MemoryError(), 4, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 4, "out of memory"),
        (RuntimeError("odd"), 1, "internal error: RuntimeError('odd'). Run again with --debug"),
        (OSError(errno.ENOSPC, "No space left on device", "plan"), 4, "No space left on device: plan"),
        (PermissionError(errno.EACCES, "Permission denied", "plan"), 3, "Permission denied: plan"),
        (ModuleNotFoundError("no", name="transformers"), 4, "pip install 'winnow-llm[hf]'"),
        (ModuleNotFoundError("no module x", name="x"), 1, "internal error"),
        (ValueError("two\nlines\x1b[31m"), 1, "internal error"),
    ],
)
def test_every_error_has_one_line_and_a_code(capsys, error, code, says):
    assert report(error, debug=False) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()


def test_control_characters_cannot_reach_the_terminal():
    assert one_line("a\nb\t\x1b[31mc\r\u202ed") == "a b \\x1b[31mc \\x202ed"


def test_warnings_are_one_line_too(winnow, model, monkeypatch):
    run = Engine.run

    def warned(self, prompt, options):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("slow\npath", RuntimeWarning, stacklevel=1)
        return run(self, prompt, options)

    monkeypatch.setattr(Engine, "run", warned)
    ran = winnow("generate", model, "x", "--max-tokens", 2, "--quiet")
    assert ran.err == "winnow: warning: slow path\n"
