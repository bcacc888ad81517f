"""What only a process of its own can show: signals, homes, caches."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli import checkpoint
from tests.cli.conftest import PROCESS
from tests.engine.convert import bins

WAIT = 120
# Says when it has begun, so that a signal meets what it is meant for.
BEGINS = """
import sys
import {module} as room
inner = room.{name}
def slow(*words, **options):
    print("begun", file=sys.stderr, flush=True)
    import time
    time.sleep(60)
    return inner(*words, **options)
room.{name} = slow
from winnow.cli import main
sys.exit(main())
"""
STATIONS = {
    "load": ("winnow.engine.convert.packed", "load_weights"),
    "prefill": ("winnow.engine.prefill", "embed"),
    "convert": ("winnow.engine.convert.rewrite", "write_shards"),
}


@pytest.mark.parametrize(("station", "times"), [("load", 1), ("prefill", 2), ("convert", 1)])
def test_an_interrupt_ends_in_one_line_whatever_it_meets(tmp_path: Path, station: str, times: int) -> None:
    model = checkpoint.write(tmp_path / "model")
    line = ["generate", str(model), "x"]
    if station == "convert":
        from safetensors.torch import load_file

        bins.write_bin(tmp_path / "bin", load_file(model / "model.safetensors"), checkpoint.config())
        line = ["convert", str(tmp_path / "bin"), str(tmp_path / "new")]
    module, name = STATIONS[station]
    command = [sys.executable, "-c", BEGINS.format(module=module, name=name), *line]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        if times == 2:
            first = process.stderr.readline()
            process.send_signal(signal.SIGINT)  # while the process is on its way out
        else:
            first = ""
        out, err = process.communicate(timeout=WAIT)
    assert (process.returncode, out, first + err) == (130, "", "winnow: interrupted\n")
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*"))


def test_no_home_and_a_cache_that_cannot_be_written_are_no_failure(tmp_path: Path) -> None:
    model = checkpoint.write(tmp_path / "model")
    (tmp_path / "cache").write_text("no directory")
    names = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    for more in ({}, {"HOME": "/nonexistent", "HF_HOME": str(tmp_path / "cache/below")}):
        done = subprocess.run(
            [sys.executable, "-c", PROCESS, "generate", str(model), "x", "--max-tokens", "2", "--quiet"],
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), more


def test_a_hub_id_with_a_cache_that_cannot_be_written_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no directory")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, "generate", "winnow-tests/not-there", "x", "--offline"],
        env={**os.environ, "HF_HOME": str(tmp_path / "cache/below")},
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("winnow: winnow-tests/not-there ") and done.stderr.count("\n") == 1
    assert time.monotonic() - began < WAIT
