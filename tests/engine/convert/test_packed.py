"""Packed files: the bits of packing on the spot, or one line that says why not."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli import checkpoint as tiny
from tests.engine import predictors
from tests.engine.convert.packing import INT8, LLAMA, WIDE, model, packed_file, packed_now, read, same_bits
from tests.engine.opt_files import OPT, random_tensors, refused, write
from winnow.base import room
from winnow.base.errors import ResourceError, UsageError
from winnow.base.rng import generator
from winnow.engine import Checkpoint, load
from winnow.engine.convert import Form, find_packed, open_weights, pack, read_packed
from winnow.engine.convert.parts import parts
from winnow.engine.sparsity import Lookahead, Plan
from winnow.engine.sparsity.plan import Provenance
from winnow.engine.weights import DTYPES
from winnow.kernels import native

POST_NORM = {"do_layer_norm_before": False, "word_embed_proj_dim": 32}
BARE = {"enable_bias": False, "layer_norm_elementwise_affine": False, "tie_word_embeddings": False}
FAMILIES = {
    "opt": tiny.config(),
    "opt-post-norm": {**tiny.config(), **POST_NORM},
    "opt-bare-untied": {**tiny.config(), **BARE},
    "llama-grouped-tied": LLAMA,
    "llama-biases-untied": {**LLAMA, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": 17},
    "qwen2": {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 1},
    "qwen3": {**LLAMA, "model_type": "qwen3"},
    "llama-coded": WIDE,
}
TYPES = [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "int4"), ("int4", "bf16")]
PROMPT = "the wind takes the light chaff"


def said(directory: Path, **options) -> tuple[list[int], list[float] | None]:
    """What a model answers, and how sure it is: its logits, in effect."""
    done = load(directory, threads=1, **options).generate(
        PROMPT, max_tokens=12, logprobs=True, ignore_eos=True
    )
    return done.token_ids, done.logprobs


@pytest.mark.parametrize(("dtype", "head_dtype"), TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_is_bit_for_bit_that_packed_on_the_spot(
    tmp_path: Path, family: str, dtype: str, head_dtype: str
) -> None:
    directory, form = model(tmp_path / "model", FAMILIES[family]), Form(dtype, head_dtype)
    path = packed_file(directory, form)
    assert find_packed(directory, form) == path
    assert same_bits(read(path, form), packed_now(directory, form))
    types = {"plan": None, "dtype": dtype, "head_dtype": head_dtype}
    assert said(directory, **types) == said(directory, **types, packed=None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_heads", [False, True], ids=["neurons", "heads"])
def test_a_plan_runs_alike_on_packed_weights(tmp_path: Path, has_heads: bool, dtype: str) -> None:
    raw = {**tiny.config(), "num_attention_heads": 2}  # int4 wants heads of 32
    directory, form = model(tmp_path / "model", raw), Form(dtype, dtype, has_heads)
    checkpoint, draws = Checkpoint.open(directory), generator(5)
    weights = packed_now(directory, form)
    heads = predictors.head_predictors(weights, draws) if has_heads else ()
    about = Provenance(
        checkpoint.content_hash(), "0" * 64, Lookahead.SAME, "svd", 0.1, 0.1, 0.5, 0.5, 9, tuple(DTYPES)
    )
    Plan(about, predictors.low_rank(weights, draws), heads=heads).save(directory / "winnow-plan.safetensors")
    expected = said(directory, dtype=dtype)
    path = packed_file(directory, form)
    assert ("by-head" in path.name) == has_heads
    assert same_bits(read(path, form), weights)
    assert said(directory, dtype=dtype) == said(directory, dtype=dtype, packed=path) == expected
    assert said(directory, dtype=dtype, plan=None) != expected


def test_the_file_is_used_and_nothing_but_the_file(tmp_path: Path) -> None:
    directory = model(tmp_path / "model")
    path = packed_file(directory)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # as the library reads it
    place = path.stat().st_size - 64
    with path.open("r+b") as file:
        file.seek(place)
        before = file.read(64)
        file.seek(place)
        file.write(bytes(byte ^ 1 for byte in before))
    changed = [name for name, tensor in parts(read(path)).items() if not torch.equal(tensor, tensors[name])]
    assert len(changed) == 1


def test_nothing_is_written_unless_asked(tmp_path: Path) -> None:
    directory = model(tmp_path / "model")
    before = sorted(path.name for path in directory.iterdir())
    said(directory, plan=None, dtype="int4")
    assert sorted(path.name for path in directory.iterdir()) == before


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    raw = {**OPT, "hidden_size": 10, "vocab_size": 311, "ffn_dim": 21}  # int8 records with a gap
    files = []
    for name in "ab":
        directory = model(tmp_path / name, raw)
        os.utime(directory / "model.safetensors", (9, 9))
        files.append(packed_file(directory).read_bytes())
    assert files[0] == files[1]


def edit_weights(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.decoder.layers.0.fc1.bias"][3] += 1
    times = (directory / "model.safetensors").stat()
    save_file(tensors, directory / "model.safetensors")
    os.utime(directory / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))


def edit_time(directory: Path) -> None:
    os.utime(directory / "model.safetensors", (9, 9))


def edit_config(directory: Path) -> None:
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**raw, "_remove_final_layer_norm": False}))


@pytest.mark.parametrize("edit", [edit_weights, edit_time, edit_config])
def test_a_stale_file_is_left_aside_with_a_word_and_refused_by_name(
    tmp_path: Path, edit: Callable[[Path], None]
) -> None:
    directory = model(tmp_path / "model")
    path = packed_file(directory)
    edit(directory)
    with pytest.warns(RuntimeWarning, match="made of other weights") as caught:
        answered = said(directory, plan=None, dtype="int8")
    assert answered == said(directory, plan=None, dtype="int8", packed=None)
    assert f"winnow convert {directory} --pack --dtype int8" in str(caught[0].message)
    assert "\n" not in str(caught[0].message)
    assert "made of other weights" in refused(lambda: load(directory, plan=None, dtype="int8", packed=path))
    packed_file(directory)
    assert said(directory, plan=None, dtype="int8") == answered  # no warning, which would be an error


def test_a_moved_model_keeps_its_file(tmp_path: Path) -> None:
    path = packed_file(model(tmp_path / "model"))
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    assert same_bits(read(tmp_path / "copy" / path.name), read(path))


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    """Change the header of a file as a tamperer would, its length made right."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:end])
    change(table)
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def say(**values: object) -> Callable[[dict], None]:
    def change(table: dict) -> None:
        metadata = table["__metadata__"]
        metadata["winnow"] = json.dumps(json.loads(metadata["winnow"]) | values)

    return change


def swap(key: str) -> Callable[[dict], None]:
    def change(table: dict) -> None:
        first, second = (table[f"layers.{index}.qkv.matrix.values"] for index in (0, 1))
        first[key], second[key] = second[key], first[key]

    return change


TAMPERED = {
    "version": (say(format="winnow-packed/0"), "has format 'winnow-packed/0'"),
    "dtype": (say(dtype="int4"), "says dtype is 'int4', expected 'int8'"),
    "heads": (say(by_head=True), "says by_head is True, expected False"),
    "layout": (say(layout={"int4_group": 64}), "another Winnow"),
    "hash": (say(model_hash="0" * 64), "made of other weights"),
    "more": (say(more=1), "a header that does not fit"),
    "places": (swap("data_offsets"), "a header that does not fit"),
    "shape": (lambda table: table["embed.values"]["shape"].reverse(), "a header that does not fit"),
    "missing": (lambda table: table.pop("embed.values"), "a header that does not fit"),
    "silent": (lambda table: table.pop("__metadata__"), "is no packed model"),
    "list": (lambda table: table["__metadata__"].update(winnow="[1]"), "is no packed model"),
    "deep": (lambda table: table["__metadata__"].update(winnow="[" * 10**6), "is no packed model"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_header_is_refused(tmp_path: Path, name: str) -> None:
    path = packed_file(model(tmp_path / "model"))
    change, says = TAMPERED[name]
    rewrite(path, lambda table: None)
    assert read(path)  # what follows is not the writing's doing
    rewrite(path, change)
    message = refused(lambda: read(path))
    assert message.startswith(f"{path} ") and says in message
    assert message.endswith("--pack --dtype int8.")


def test_no_bit_of_the_header_can_flip_unseen(tmp_path: Path) -> None:
    path = packed_file(model(tmp_path / "model"))
    data, checkpoint = bytearray(path.read_bytes()), Checkpoint.open(path.parent)
    end = 8 + int.from_bytes(data[:8], "little")
    for place in [*range(24), *range(24, end, 131), *range(end - 8, end)]:
        bit = 1 << place % 8
        data[place] ^= bit
        path.write_bytes(data)
        refused(lambda: read_packed(path, checkpoint, INT8))
        data[place] ^= bit
    path.write_bytes(data)
    assert read(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1 - 1e-9])
def test_a_file_cut_short_or_grown_is_refused(tmp_path: Path, share: float) -> None:
    path = packed_file(model(tmp_path / "model"))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "Make it anew" in refused(lambda: read(path))
    path.write_bytes(data + b"\0")
    assert f"has {len(data) + 1} bytes, expected {len(data)}" in refused(lambda: read(path))


@pytest.mark.parametrize("name", ["embed.scales", "layers.1.qkv.bias", "layers.1.mlp"])
def test_scales_and_biases_that_are_not_finite_are_refused(tmp_path: Path, name: str) -> None:
    path = packed_file(model(tmp_path / "model"))
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    first, last = json.loads(data[8:end])[name]["data_offsets"]
    if name.endswith("mlp"):  # of a record, the floats stand before the padding
        last = first + 2 * tiny.WIDTH + 12
    broken = data[: end + last - 4] + b"\x00\x00\xc0\x7f" + data[end + last :]
    path.write_bytes(broken)
    where = name.removesuffix(".scales")
    assert f"NaN or infinite scales or biases in {where}" in refused(lambda: read(path))


def test_weights_that_are_not_finite_are_not_packed(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors["model.decoder.layers.1.fc2.weight"][3, 5] = float("nan")
    directory = write(tmp_path, tensors)
    assert "NaN or infinite weights in layers.1.mlp" in refused(lambda: packed_file(directory))
    assert not list(directory.glob("*packed*"))


def test_an_interrupted_writing_leaves_the_old_file(tmp_path: Path) -> None:
    directory = model(tmp_path / "model")
    before = packed_file(directory).read_bytes()
    names = sorted(path.name for path in directory.iterdir())

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    edit_time(directory)
    with pytest.raises(KeyboardInterrupt):
        pack(Checkpoint.open(directory), INT8, directory, interrupt)
    assert sorted(path.name for path in directory.iterdir()) == names
    assert (directory / INT8.file_name).read_bytes() == before


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    checkpoint = Checkpoint.open(model(tmp_path / "model"))
    done = pack(checkpoint, INT8, tmp_path / "new/place", lambda *each: told.append(each))
    assert told[-1] == (done.n_bytes, done.n_bytes) and told == sorted(told)
    assert done.path == tmp_path / "new/place" / INT8.file_name
    assert same_bits(read_packed(done.path, checkpoint, INT8), packed_now(tmp_path / "model", INT8))


def test_a_disk_without_room_is_found_out_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = model(tmp_path / "model")
    usage = room.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "1 kB are free" in refused(lambda: packed_file(directory), ResourceError)
    assert not list(directory.glob("*packed*"))


@contextmanager
def unprivileged() -> Iterator[None]:
    """A user for whom read-only means read-only."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_read_only_directory_says_where_else(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as place:  # tmp_path is closed to other users
        directory = model(Path(place) / "model")
        Path(place).chmod(0o755)
        directory.chmod(0o555)
        for path in directory.iterdir():
            path.chmod(0o444)
        with unprivileged():
            message = refused(lambda: packed_file(directory), UsageError)
        assert f"{directory} cannot be written (Permission denied)" in message
        assert f"winnow convert {directory} DST --pack --dtype int8" in message
        directory.chmod(0o755)


def test_a_link_out_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    path = packed_file(model(tmp_path / "model"))
    outside = path.rename(tmp_path / "outside.safetensors")
    path.symlink_to(outside)
    with pytest.warns(RuntimeWarning, match="leads out of the model directory"):
        open_weights(Checkpoint.open(path.parent), INT8, "auto")


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    directory = model(tmp_path / "model")
    message = refused(lambda: load(directory, plan=None, packed=tmp_path / "none"))
    assert "cannot be read (No such file or directory)" in message


def test_compiled_and_portable_packages_read_each_others_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = model(tmp_path / "model")
    form = Form("int4", "int8")
    compiled = packed_file(directory, form).read_bytes()
    held = packed_now(directory, form)
    monkeypatch.setattr(native, "module", None)
    assert same_bits(read(directory / form.file_name, form), held)
    assert packed_file(directory, form).read_bytes() == compiled
