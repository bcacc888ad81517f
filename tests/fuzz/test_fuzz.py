"""Fuzzers: a valid file, changed, loads or is refused in one line; nothing else ever happens.

Nothing else: no other exception, no two seconds of processor time, no module imported, no memory beyond a
bound.
"""

import contextlib
import json
import re
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from tests.broken import plans
from tests.cli import checkpoint
from tests.engine.convert import bins
from tests.engine.opt_files import OPT, random_tensors, two_shards, write, write_shards
from tests.fuzz import mutations
from tests.fuzz.conftest import IN_SUITE
from winnow.base.errors import ModelError, ResourceError, UsageError
from winnow.engine import Checkpoint, Tokenizer, load_weights, read_config, tensor_shapes
from winnow.engine.convert import TorchFile
from winnow.engine.sparsity import read_plan

ALLOWED = (ModelError, UsageError, ResourceError)
SECONDS = 2.0
MOST_BYTES = 300 * 2**20
MOST_AT_ONCE = 10_000  # hypothesis remembers them all: collecting more takes longer than an input may
LONGEST_LINE = 1500
ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 31,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_parameters": ROPE,
    "tie_word_embeddings": False,
    "eos_token_id": [1, 2],
    "sliding_window": 8,
    "head_dim": 4,
    "attention_bias": False,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "torch_dtype": "float32",
}


def high_water_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


class TooSlowError(BaseException):
    """An input took its time."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Fail for an input that takes too long or brings modules with it; let the three errors pass."""

    def too_slow(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"took more than {SECONDS} s")

    before = set(sys.modules)
    former = signal.signal(signal.SIGPROF, too_slow)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    except ALLOWED as error:
        assert len(str(error)) <= LONGEST_LINE, "the line is longer than a person reads"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)
    assert set(sys.modules) == before, set(sys.modules) - before


def check_every_input(
    inputs: st.SearchStrategy, read: Callable[..., object], valid: object, n_inputs: int, share: float | int
) -> None:
    """Try `share` of all inputs: `read` each, watched; the valid one must be read without complaint."""
    read(valid)  # imports what it needs, and is no error
    held = high_water_bytes()
    is_suite = n_inputs == IN_SUITE

    n_wanted = max(1, round(n_inputs * share))
    n_batches = -(-n_wanted // MOST_AT_ONCE)

    @hypothesis.settings(
        max_examples=-(-n_wanted // n_batches),
        derandomize=is_suite,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(inputs)
    def each(content: object) -> None:
        with watched():
            read(content)

    for _ in range(n_batches):
        each()
    assert high_water_bytes() - held <= MOST_BYTES


@pytest.mark.parametrize("raw", [OPT, LLAMA], ids=["opt", "llama"])
def test_a_changed_config_is_read_or_refused(tmp_path: Path, raw: dict, n_inputs: int) -> None:
    def read(content: bytes) -> None:
        (tmp_path / "config.json").write_bytes(content)
        tensor_shapes(read_config(tmp_path))

    check_every_input(mutations.json_texts(raw), read, json.dumps(raw).encode(), n_inputs, 0.1)


def test_a_changed_index_is_read_or_refused(tmp_path: Path, n_inputs: int) -> None:
    write_shards(tmp_path, two_shards())
    index = tmp_path / "model.safetensors.index.json"
    valid = json.loads(index.read_text())
    (tmp_path / "trap.py").write_text("raise SystemExit")

    def read(content: bytes) -> None:
        index.write_bytes(content)
        Checkpoint(tmp_path)

    check_every_input(mutations.json_texts(valid), read, json.dumps(valid).encode(), n_inputs, 0.05)


def test_changed_weights_are_read_or_refused(tmp_path: Path, n_inputs: int) -> None:
    path = write(tmp_path, random_tensors()) / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]

    def packed(changed: object) -> bytes:
        text = json.dumps(changed).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + data

    def read(changed: bytes) -> None:
        path.write_bytes(changed)
        load_weights(Checkpoint(tmp_path), torch.float32)

    inputs = st.one_of(
        mutations.json_values(header).map(packed),
        mutations.byte_strings(content, last=8 + size),
        mutations.byte_strings(content),
    )
    check_every_input(inputs, read, content, n_inputs, 0.15)


def bin_tensors() -> dict[str, torch.Tensor]:
    weight = torch.arange(12).float().reshape(4, 3)
    return {"a": weight, "b": weight.t(), "c": weight[1].half(), "d": torch.arange(5), "e": torch.zeros(0)}


def read_bin(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    file = TorchFile(path)
    for name in file.views:
        file.tensor(name).contiguous().sum()


def test_a_changed_program_is_read_or_refused(tmp_path: Path, n_inputs: int) -> None:
    archive = bins.of(bin_tensors())
    program = archive.entries["archive/data.pkl"]
    codes = st.sampled_from(
        [
            bytes([code])
            for code in b"()]}.0NKMJGXcthqrjQRbuse\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95"
        ]
    )
    foreign = st.sampled_from(
        [bins.name("posix", "system"), bins.name("builtins", "eval"), bins.whole(-1), bins.whole(2**62)]
    )
    spliced = st.tuples(
        st.integers(0, len(program)), st.integers(0, 12), st.lists(st.one_of(codes, foreign), max_size=4)
    ).map(lambda cut: program[: cut[0]] + b"".join(cut[2]) + program[cut[0] + cut[1] :])
    storages = {name.rpartition("/")[2]: data for name, data in archive.entries.items() if "/data/" in name}

    def read(changed: bytes) -> None:
        read_bin(tmp_path / "a.bin", bins.archive(changed, storages).content())

    check_every_input(st.one_of(mutations.byte_strings(program), spliced), read, program, n_inputs, 0.25)


def test_a_changed_archive_is_read_or_refused(tmp_path: Path, n_inputs: int) -> None:
    archive = bins.of(bin_tensors())
    archive.alignment = 4
    content = archive.content()
    directory = content.index(b"PK\x01\x02")
    inputs = st.one_of(mutations.byte_strings(content), mutations.byte_strings(content, first=directory))
    check_every_input(inputs, lambda changed: read_bin(tmp_path / "a.bin", changed), content, n_inputs, 0.15)


def test_a_changed_plan_is_read_or_refused(tmp_path: Path, n_inputs: int) -> None:
    model = Checkpoint(checkpoint.write(tmp_path / "model"))
    model_hash = model.content_hash()
    path = plans.write_plan(model.directory)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    said = json.loads(header["__metadata__"]["winnow"])

    def packed(changed: object) -> bytes:
        text = json.dumps(changed).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + data

    def told(changed: object) -> bytes:
        return packed({**header, "__metadata__": {"winnow": json.dumps(changed)}})

    def read(changed: bytes) -> None:
        path.write_bytes(changed)
        read_plan(path, model.config, model_hash)

    inputs = st.one_of(
        mutations.json_values(said).map(told),
        mutations.json_values(header).map(packed),
        mutations.byte_strings(content, last=8 + size),
    )
    check_every_input(inputs, read, content, n_inputs, 0.1)


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_a_changed_tokenizer_is_read_or_refused(tmp_path: Path, model: str, n_inputs: int) -> None:
    path = checkpoint.write(tmp_path / "model") / "tokenizer.json"
    valid = json.loads(path.read_text())
    if model == "unigram":
        valid["model"] = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -2.0]], "unk_id": 0}
        valid["post_processor"], valid["added_tokens"] = None, []
    else:
        # A few tokens do for a tokenizer, and leave the other parts in view.
        valid["model"]["vocab"] = {token: i for i, token in enumerate(list(valid["model"]["vocab"])[:262])}
        valid["model"]["merges"] = []

    def read(content: bytes) -> None:
        path.write_bytes(content)
        tokenizer = Tokenizer.open(path.parent)
        ids = tokenizer.encode("ab naïve 日本")
        tokenizer.decode(ids)

    check_every_input(mutations.json_texts(valid), read, json.dumps(valid).encode(), n_inputs, 0.05)
