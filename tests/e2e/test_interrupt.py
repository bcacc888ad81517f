"""Ctrl-C, as a terminal sends it."""

import os
import signal
import subprocess
import sys

import pytest

from tests.cli import checkpoint

COMMAND = "import sys; from winnow.cli import main; sys.exit(main())"


@pytest.fixture
def model(tmp_path):
    return checkpoint.write(tmp_path / "tiny")


def test_interrupt_in_the_middle_of_a_run_ends_in_one_line(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(checkpoint.text(60_000, seed=1))
    command = [sys.executable, "-c", COMMAND, "perplexity", str(model), "--text", str(text)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        os.read(process.stderr.fileno(), 1)  # its first line of progress: the run has begun
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert err.decode().splitlines()[-1] == "winnow: interrupted"
    assert b"Traceback" not in err
