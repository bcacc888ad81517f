"""Checkpoints: good ones open, and each kind of broken one is refused in one line that says what to do."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine.opt_files import (
    HEAD,
    NORM,
    OPT,
    load,
    random_tensors,
    refused,
    two_shards,
    write,
    write_shards,
)
from winnow.base.errors import UsageError
from winnow.engine import Checkpoint, DictSource, load_weights, parse_config
from winnow.engine.checkpoint import HASHED_WHOLE_BYTES


def test_a_single_file_opens_with_its_tensors(tmp_path: Path) -> None:
    tensors = random_tensors()
    checkpoint = Checkpoint.open(write(tmp_path, tensors))
    assert set(checkpoint.names()) == set(tensors)
    assert checkpoint.describe(NORM) == ((12,), "F32")
    assert torch.equal(checkpoint.tensor(NORM), tensors[NORM])
    assert checkpoint.config == parse_config(OPT)
    assert checkpoint.notes == ()


def test_shards_give_the_tensors_of_a_single_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_shards(tmp_path, two_shards()))
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in random_tensors().items())


def test_tensors_in_memory_load_as_those_on_disk_do(tmp_path: Path) -> None:
    tensors = random_tensors()
    on_disk = load_weights(Checkpoint.open(write(tmp_path, tensors)), torch.bfloat16)
    in_memory = load_weights(DictSource(parse_config(OPT), tensors), torch.bfloat16)
    assert torch.equal(on_disk.layers[1].mlp.storage, in_memory.layers[1].mlp.storage)
    assert torch.equal(on_disk.layers[1].qkv.matrix.weight, in_memory.layers[1].qkv.matrix.weight)


def test_queries_keys_and_values_lie_in_one_matrix(tmp_path: Path) -> None:
    tensors = random_tensors()
    layer = load_weights(DictSource(parse_config(OPT), tensors), torch.float32).layers[1]
    at = "model.decoder.layers.1.self_attn"
    assert torch.equal(
        layer.qkv.matrix.weight, torch.cat([tensors[f"{at}.{each}_proj.weight"] for each in "qkv"])
    )
    assert layer.qkv.bias is not None
    assert torch.equal(layer.qkv.bias, torch.cat([tensors[f"{at}.{each}_proj.bias"] for each in "qkv"]))


def test_a_record_holds_a_neuron(tmp_path: Path) -> None:
    tensors = random_tensors()
    records = load_weights(DictSource(parse_config(OPT), tensors), torch.float32).layers[0].mlp
    assert torch.equal(records.w_in[7], tensors["model.decoder.layers.0.fc1.weight"][7])
    assert torch.equal(records.w_out[7], tensors["model.decoder.layers.0.fc2.weight"][:, 7])
    assert records.bias[7] == tensors["model.decoder.layers.0.fc1.bias"][7]


def test_other_types_are_not_offered(tmp_path: Path) -> None:
    source = DictSource(parse_config(OPT), random_tensors())
    assert "expected one of " in refused(lambda: load_weights(source, torch.float16), UsageError)


def test_the_end_tokens_of_generation_config_win(tmp_path: Path) -> None:
    write(tmp_path, random_tensors())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert Checkpoint.open(tmp_path).config.eos_ids == (2, 7)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 31}')
    assert "generation_config.json: eos_token_id is 31" in refused(lambda: Checkpoint.open(tmp_path))


def test_code_beside_the_weights_is_noted_and_not_run(tmp_path: Path) -> None:
    write(tmp_path, random_tensors(), {**OPT, "auto_map": {"AutoConfig": "configuration_trap.Trap"}})
    (tmp_path / "configuration_trap.py").write_text("raise SystemExit('imported')")
    (note,) = Checkpoint.open(tmp_path).notes
    assert "auto_map" in note and "never runs" in note


# Missing, left-over and misshapen tensors


def change(name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    tensors = random_tensors()
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    return tensors


@pytest.mark.parametrize(
    ("name", "tensor", "named"),
    [
        (NORM, None, f"lacks {NORM}"),
        ("model.decoder.extra.weight", torch.zeros(3), "holds model.decoder.extra.weight"),
        (NORM, torch.zeros(13), r"has shape [13], expected [12]"),
        (NORM, torch.zeros(12, 1), r"has shape [12, 1]"),
        (NORM, torch.zeros(12, dtype=torch.int64), "has type I64"),
        (NORM, torch.zeros(12).to(torch.float8_e4m3fn), "has type F8_E4M3"),
        (HEAD, torch.zeros(31, 12), f"{HEAD} differs from the embedding although config.json ties the two"),
        (HEAD, torch.zeros(30, 12), f"{HEAD} has shape [30, 12]"),
    ],
    ids=["missing", "extra", "longer", "rank", "int64", "float8", "contradicting-head", "short-head"],
)
def test_a_tensor_out_of_line_is_refused_by_name(
    tmp_path: Path, name: str, tensor: Tensor | None, named: str
) -> None:
    write(tmp_path, change(name, tensor))
    assert named in refused(lambda: load(tmp_path))


def test_many_missing_tensors_are_counted_not_listed(tmp_path: Path) -> None:
    write(tmp_path, {"model.norm.weight": torch.zeros(12)})
    assert "more tensors" in refused(lambda: load(tmp_path))


def test_an_untied_model_needs_its_head(tmp_path: Path) -> None:
    write(tmp_path, random_tensors(), {**OPT, "tie_word_embeddings": False})
    assert f"lacks {HEAD}" in refused(lambda: load(tmp_path))


@pytest.mark.parametrize("name", ["model.decoder.version", "model.layers.0.self_attn.rotary_emb.inv_freq"])
def test_buffers_of_older_checkpoints_are_passed_over(tmp_path: Path, name: str) -> None:
    write(tmp_path, {**random_tensors(), name: torch.zeros(1)})
    assert load(tmp_path) is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_every_float_type_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors().items()}
    weights = load_weights(Checkpoint.open(write(tmp_path, tensors)), torch.float32)
    assert torch.equal(weights.embed.weight, tensors["model.decoder.embed_tokens.weight"].float())


# The content hash


def test_the_hash_is_of_content_not_of_place_or_saver(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write(first, random_tensors())
    write(second, random_tensors(), {"transformers_version": "4.1", "_name_or_path": "x", **OPT})
    assert Checkpoint.open(first).content_hash() == Checkpoint.open(second).content_hash()


@pytest.mark.parametrize("what", ["config", "weights"])
def test_the_hash_changes_with_content(tmp_path: Path, what: str) -> None:
    before = Checkpoint.open(write(tmp_path, random_tensors())).content_hash()
    raw = {**OPT, "eos_token_id": 3} if what == "config" else OPT
    tensors = random_tensors()
    if what == "weights":
        tensors[NORM][5] += 1e-3
    assert Checkpoint.open(write(tmp_path, tensors, raw)).content_hash() != before


def test_a_large_file_is_hashed_by_samples_that_cover_it(tmp_path: Path) -> None:
    raw = {**OPT, "vocab_size": HASHED_WHOLE_BYTES // 48 + 4001}
    tensors = random_tensors(raw)
    before = Checkpoint.open(write(tmp_path, tensors, raw)).content_hash()
    tensors["model.decoder.embed_tokens.weight"] *= 1.01  # every weight moves, as in training
    assert Checkpoint.open(write(tmp_path, tensors, raw)).content_hash() != before


def test_a_tensor_that_was_dropped_holds_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path, {**random_tensors(), "large": torch.ones(4 << 20)})
    source = Checkpoint.open(path)
    total = float(source.tensor("large").sum())
    assert total == 4 << 20
    assert resident_bytes_of(path) < 4 << 20  # a quarter of what was read


def resident_bytes_of(directory: Path) -> int:
    """Return how much of the files mapped from `directory` counts as this process's memory."""
    n_bytes, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(":")[0].split()[0]:  # the first line of a mapping: its addresses, ..., its file
            is_ours = str(directory) in line
        elif is_ours and line.startswith("Rss:"):
            n_bytes += 1024 * int(line.split()[1])
    return n_bytes
