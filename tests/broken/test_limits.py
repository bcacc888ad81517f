"""Large broken files are refused at once: 2 s of processor time, 1.2 times their size in memory."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.broken import files
from tests.cli import checkpoint
from tests.engine.convert import bins

SECONDS = 2.0
FREE_BYTES = 80 * 2**20  # what a refusal may take whatever the file's size: the objects of 5 MB of JSON
MEGABYTE = 2**20


# Run in a process of its own: the type checks and the coverage of the tests take ten times what they watch.
MEASURE = """
import io, json, re, sys, time
from contextlib import redirect_stderr
from pathlib import Path
from winnow.cli import main

def high_water_bytes():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

commands = json.loads(sys.stdin.read())
with redirect_stderr(io.StringIO()):
    for verb in ("generate", "convert"):
        main([verb, "/nonexistent/model", "/nonexistent/new"])  # what is imported once is not counted
for command in commands:
    Path("/proc/self/clear_refs").write_text("5")  # the high water mark becomes what is held now
    held, began, said = high_water_bytes(), time.process_time(), io.StringIO()
    with redirect_stderr(said):
        code = main(command)
    print(json.dumps([code, said.getvalue(), time.process_time() - began, high_water_bytes() - held]))
"""


def sparse(path: Path, beginning: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(beginning)
        file.truncate(size)


def many_entries(path: Path) -> None:
    """A directory of 60,000 entries, each empty."""
    names = {f"archive/data/{i}": b"" for i in range(60_000)}
    path.write_bytes(bins.Zip(names, alignment=1).content())


def many_steps(path: Path) -> None:
    """A program that fills lists for as long as it may."""
    program = bins.PROTOCOL + b"]\x94(0" * 500_000 + b"."
    path.write_bytes(bins.archive(program, {}).content())


def long_tuples(path: Path) -> None:
    """A program that calls with a shape of thousands of axes, over and over."""
    long = b"(" + b"K\x01" * 15_000 + b"tq\x01"
    call = bins.REBUILD + b"(h\x01h\x01h\x01tR"
    path.write_bytes(bins.archive(bins.PROTOCOL + long + call * 60_000 + b".", {}).content())


def nested(path: Path) -> None:
    """A small text that prints as gigabytes: each tuple holds the one before it twice."""
    doubled = b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
    path.write_bytes(bins.archive(bins.PROTOCOL + b"]" + doubled + b".", {}).content())


def huge_header(path: Path) -> None:
    sparse(path, struct.pack("<Q", 90 * MEGABYTE) + b"{", 200 * MEGABYTE)


def many_tensors(path: Path) -> None:
    """A safetensors header of 40,000 tensors that are none of the model's."""
    table = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(40_000)}
    path.write_bytes(files.header(table))


LARGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config": ("config.json", lambda path: sparse(path, b"{", 200 * MEGABYTE)),
    "config-of-zeros": ("config.json", lambda path: path.write_text('{"a": [' + "0," * 2 * 10**6 + "0]}")),
    "tokenizer": ("tokenizer.json", lambda path: sparse(path, b"{", 200 * MEGABYTE)),
    "weights": ("model.safetensors", lambda path: sparse(path, b"\x08" + bytes(7) + b"{}      ", 10**9)),
    "weights-header": ("model.safetensors", huge_header),
    "weights-names": ("model.safetensors", many_tensors),
    "bin": ("pytorch_model.bin", lambda path: sparse(path, b"PK\x03\x04", 10**9)),
    "bin-entries": ("pytorch_model.bin", many_entries),
    "bin-steps": ("pytorch_model.bin", many_steps),
    "bin-tuples": ("pytorch_model.bin", long_tuples),
    "bin-nested": ("pytorch_model.bin", nested),
    "index": (
        "pytorch_model.bin.index.json",
        lambda path: path.write_text(json.dumps({"weight_map": {f"t{i}": "a.bin" for i in range(250_000)}})),
    ),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list]]:
    """For each large file its size, and the exit code, the words, the seconds and the bytes that it took."""
    commands, sizes = [], []
    for name, write in LARGE.values():
        at = checkpoint.write(tmp_path_factory.mktemp("large") / "model")
        commands.append(["generate", str(at), "x"])
        if ".bin" in name:
            (at / "model.safetensors").unlink()
            commands[-1] = ["convert", str(at), str(at.parent / "new")]
        write(at / name)
        sizes.append((at / name).stat().st_size)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
    )
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(LARGE, zip(sizes, measured, strict=True), strict=True))


@pytest.mark.parametrize("case", LARGE)
def test_a_large_broken_file_is_refused_in_little_time_and_memory(
    refusals: dict[str, tuple[int, list]], case: str
) -> None:
    size, (code, said, seconds, grown) = refusals[case]
    assert (code, said.count("\n")) == (3, 1), said
    assert seconds <= SECONDS
    assert grown <= 1.2 * size + FREE_BYTES
