"""Foreign and escaping files are refused in one line; and where a model is looked for.

Broken ones are met through the command line, in tests/broken.
"""

import json
from pathlib import Path

import huggingface_hub
import pytest

from tests.broken.files import header
from tests.engine.opt_files import (
    INDEX,
    NORM,
    OPT,
    load,
    random_tensors,
    refused,
    two_shards,
    write,
    write_shards,
)
from winnow.base.errors import UsageError, WinnowError
from winnow.engine import Checkpoint, find_directory, parse_config

# Formats


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("pytorch_model.bin", "winnow convert "),
        ("pytorch_model.bin.index.json", "winnow convert "),
        ("consolidated.00.pth", "another name than pytorch_model.bin"),
        ("model.Q4_K_M.gguf", "Use the model's original safetensors"),
        ("readme.txt", "Download the weights"),
    ],
)
def test_other_formats_are_refused_with_the_way_round(tmp_path: Path, file: str, named: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OPT))
    (tmp_path / file).write_bytes(b"\x80\x02")
    assert named in refused(lambda: Checkpoint.open(tmp_path))


# The index


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/b.safetensors",
        "..",
        "model.bin",
        "a\nb.safetensors",
        "",
        7,
    ],
)
def test_an_index_may_name_plain_files_only(tmp_path: Path, shard: object) -> None:
    write_shards(tmp_path, two_shards(), {NORM: shard})
    assert "expected a plain name ending in .safetensors" in refused(lambda: Checkpoint.open(tmp_path))


@pytest.mark.parametrize("table", [None, [], {}, "all"])
def test_an_index_without_a_table_is_refused(tmp_path: Path, table: object) -> None:
    write_shards(tmp_path, two_shards())
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": table}))
    assert "weight_map is" in refused(lambda: Checkpoint.open(tmp_path))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, two_shards())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors cannot be read" in refused(lambda: Checkpoint.open(tmp_path))


def test_a_hundred_thousand_shards_are_too_many(tmp_path: Path) -> None:
    write_shards(tmp_path, two_shards(), {f"t{i}": f"s{i}.safetensors" for i in range(100_000)})
    assert "names 100000 files" in refused(lambda: Checkpoint.open(tmp_path))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards = two_shards()
    shards["model-00002-of-00002.safetensors"] |= {NORM: random_tensors()[NORM]}
    shards["model-00001-of-00002.safetensors"] |= {NORM: random_tensors()[NORM]}
    write_shards(tmp_path, shards)
    assert f"'{NORM}' is in both" in refused(lambda: Checkpoint.open(tmp_path))


def test_an_index_out_of_step_with_its_shards_is_refused(tmp_path: Path) -> None:
    shards = two_shards()
    table = {name: file for file, tensors in shards.items() for name in tensors}
    del table[NORM]
    write_shards(tmp_path, shards, table)
    assert f"places '{NORM}' in None" in refused(lambda: Checkpoint.open(tmp_path))


# Links


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_out_of_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    write(outside, random_tensors())
    write(inside, random_tensors())
    (inside / name).unlink()
    (inside / name).symlink_to(outside / name)
    assert "leads out of the model directory" in refused(lambda: Checkpoint.open(inside))


def test_a_shard_that_links_out_is_refused(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    write_shards(inside, two_shards())
    shard = inside / "model-00001-of-00002.safetensors"
    shard.rename(outside / shard.name)
    shard.symlink_to(outside / shard.name)
    assert "leads out of the model directory" in refused(lambda: Checkpoint.open(inside))


def hub_snapshot(root: Path) -> Path:
    """Write the layout of the hub's cache: a snapshot of links into a store of blobs."""
    blobs, snapshot = root / "models--o--n" / "blobs", root / "models--o--n" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    write(blobs, random_tensors())
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    return snapshot


def test_the_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    assert load(hub_snapshot(tmp_path)) is not None


# Where a model is looked for


def test_a_link_to_a_directory_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", random_tensors())
    (tmp_path / "link").symlink_to(tmp_path / "model")
    assert load(tmp_path / "link") is not None


@pytest.mark.parametrize(
    "model",
    [
        "nowhere",
        "./no/where",
        "/no/where",
        "../../x",
        "a/b/c",
        "a/..",
        "",
        "owner/na me",
        "-o/n",
        "o/n\n",
        "x" * 300,
    ],
)
def test_a_name_that_is_neither_path_nor_hub_id_is_refused(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def never(*args: object, **kwargs: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    refused(lambda: Checkpoint.open(model), WinnowError)
    assert not isinstance(model, Path)


def test_a_file_is_no_model_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "is a file, expected a model directory" in refused(lambda: Checkpoint.open(tmp_path / "file"))


def test_an_absurdly_long_name_is_a_usage_error() -> None:
    assert "not a usable path" in refused(lambda: find_directory("x/" * 5000), UsageError)


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    assert "config.json cannot be read" in refused(lambda: Checkpoint.open(tmp_path))


def test_a_hub_id_is_fetched_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def snapshot_download(model: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.update(model=model, patterns=allow_patterns, offline=local_files_only)
        return str(hub_snapshot(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert Checkpoint.open("owner/name").config == parse_config(OPT)
    assert asked["model"] == "owner/name" and asked["offline"] is False
    assert not any(str(pattern).endswith((".bin", ".py", "*")) for pattern in asked["patterns"])  # type: ignore[attr-defined]


def test_a_hub_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    assert "owner/name is no directory here and cannot be had from the hub: no route. Check" in refused(
        lambda: Checkpoint.open("owner/name")
    )


def test_offline_looks_into_the_cache_only() -> None:
    message = refused(lambda: Checkpoint.open("no-such-owner/no-such-model", offline=True))
    assert "is not in the local cache" in message


def test_a_type_that_torch_cannot_hold_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OPT))
    entry = {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}
    (tmp_path / "model.safetensors").write_bytes(header({"a": entry}) + bytes(3))
    checkpoint = Checkpoint.open(tmp_path)
    assert "a cannot be read" in refused(lambda: checkpoint.tensor("a"))
