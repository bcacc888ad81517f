"""What the command line is tested on: a tiny model with and without a plan, texts, ways to run a line."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli import checkpoint
from winnow.cli import main

PROCESS = "import sys; from winnow.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Ran:
    """What one command line gave."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def winnow(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command line in this process."""

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture
def process() -> Run:
    """Run one command line in a process of its own, as a shell would; `stdout` may be an open file."""

    def run(*argv: object, stdout: int = subprocess.PIPE, stdin: bytes = b"") -> Ran:
        command = [sys.executable, "-c", PROCESS, *(os.fsencode(str(word)) for word in argv)]
        done = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, input=stdin, timeout=120, check=False
        )
        return Ran(done.returncode, (done.stdout or b"").decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint without a plan."""
    return checkpoint.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of some 20 windows."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(checkpoint.text(1500, seed=1))
    return path


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another text, which no plan has seen."""
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text(checkpoint.text(333, seed=2))
    return path


@pytest.fixture(scope="session")
def calibrated(model: Path, corpus: Path) -> tuple[Path, Ran]:
    """The same checkpoint with the plan that `winnow calibrate` makes of it, and what the command printed."""
    directory = model.with_name("planned")
    shutil.copytree(model, directory)
    line = ["calibrate", str(directory), "--text", str(corpus), "--target-kld", "0.1", "--threads", "1"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line)
    assert code == 0, err.getvalue()
    return directory, Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def planned(calibrated: tuple[Path, Ran]) -> Path:
    """The checkpoint with a plan beside its weights."""
    return calibrated[0]


def assert_one_line(ran: Ran, code: int, *says: str) -> None:
    """The command failed with `code` and said why in one line, which holds all of `says`."""
    assert (ran.code, ran.out) == (code, ""), ran
    assert ran.err.startswith("winnow: "), ran.err
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.endswith("\n"), ran.err
    missing = [words for words in says if words not in ran.err]
    assert not missing, f"{missing} not in {ran.err}"
