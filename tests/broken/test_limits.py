"""Large broken files are refused at once: 2 s of processor time, 1.2 times their size in memory."""

import json
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.broken import files
from tests.cli import checkpoint
from tests.engine.convert import bins
from winnow.cli import main

SECONDS = 2.0
FREE_BYTES = 80 * 2**20  # what a refusal may take whatever the file's size: the objects of 5 MB of JSON
MEGABYTE = 2**20


def high_water_bytes() -> int:
    """The most memory that this process has held since it was last asked to forget."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def forget() -> int:
    """Let the high water mark be what the process holds now, and return it."""
    Path("/proc/self/clear_refs").write_text("5")
    return high_water_bytes()


def sparse(path: Path, beginning: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(beginning)
        file.truncate(size)


def many_entries(path: Path) -> None:
    """A directory of 20,000 entries, each empty."""
    names = {f"archive/data/{i}": b"" for i in range(20_000)}
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


@pytest.mark.parametrize(("name", "write"), LARGE.values(), ids=LARGE)
def test_a_large_broken_file_is_refused_in_little_time_and_memory(
    tmp_path: Path, name: str, write: Callable[[Path], object], capfd: pytest.CaptureFixture[str]
) -> None:
    at = checkpoint.write(tmp_path / "model")
    command = ["generate", str(at), "x"]
    if ".bin" in name:
        (at / "model.safetensors").unlink()
        command = ["convert", str(at), str(tmp_path / "new")]
    write(at / name)
    main(["generate", str(tmp_path), "x"])  # what is imported once is not counted
    size = (at / name).stat().st_size
    held, began = forget(), time.process_time()
    code = main(command)
    seconds, grown = time.process_time() - began, high_water_bytes() - held
    assert code == 3
    assert capfd.readouterr().err.count("\n") == 2
    assert seconds <= SECONDS
    assert grown <= 1.2 * size + FREE_BYTES
