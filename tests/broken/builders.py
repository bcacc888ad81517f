"""Ways to break a model: each damages the one in a directory, or says what to ask of it."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.broken import plans
from tests.cli import checkpoint
from tests.engine.convert import bins
from winnow.base import room

Patch = pytest.MonkeyPatch
Line = Sequence[object]  # the words of a command line
Build = Callable[[Path, Patch], Line | None]  # damages the model in a directory; None: generate from it

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
EMBED = "model.decoder.embed_tokens.weight"
NORM = "model.decoder.final_layer_norm.weight"


def config(at: Path, patch: Patch, **changes: object) -> None:
    (at / "config.json").write_text(json.dumps({**checkpoint.config(), **changes}))


def llama(at: Path, patch: Patch, **changes: object) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    kind = {"model_type": "llama", "vocab_size": checkpoint.N_ROWS, "max_position_embeddings": 160}
    (at / "config.json").write_text(json.dumps({**kind, **sizes, **changes}))


def holding(name: str, content: bytes | str) -> Build:
    def build(at: Path, patch: Patch) -> None:
        (at / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return build


def without(*names: str, **written: str) -> Build:
    def build(at: Path, patch: Patch) -> None:
        for name in names:
            (at / name).unlink()
        for name, content in written.items():
            (at / name.replace("__", ".")).write_text(content)

    return build


def sparse(name: str, size: int) -> Build:
    def build(at: Path, patch: Patch) -> None:
        with (at / name).open("wb") as file:
            file.truncate(size)

    return build


def weights(**changes: torch.Tensor | None) -> Build:
    """Change tensors by name, ``__`` for a dot."""

    def build(at: Path, patch: Patch) -> None:
        tensors = load_file(at / WEIGHTS)
        for name, tensor in changes.items():
            spelled = name.replace("__", ".")
            if tensor is None:
                del tensors[spelled]
            else:
                tensors[spelled] = tensor
        save_file(tensors, at / WEIGHTS)

    return build


def sharded(at: Path, patch: Patch, **places: object) -> None:
    """Cut the weights into two shards; `places` change what the index says of tensors, ``__`` for a dot."""
    tensors = load_file(at / WEIGHTS)
    (at / WEIGHTS).unlink()
    names = sorted(tensors)
    table: dict[str, object] = {}
    for shard, part in {"a.safetensors": names[::2], "b.safetensors": names[1::2]}.items():
        save_file({name: tensors[name] for name in part}, at / shard)
        table |= dict.fromkeys(part, shard)
    table |= {name.replace("__", "."): place for name, place in places.items()}
    (at / INDEX).write_text(json.dumps({"weight_map": table}))


def missing_shard(at: Path, patch: Patch) -> None:
    sharded(at, patch)
    (at / "b.safetensors").unlink()


def twice(at: Path, patch: Patch) -> None:
    sharded(at, patch)
    for shard in ("a.safetensors", "b.safetensors"):
        save_file({**load_file(at / shard), NORM: torch.ones(64)}, at / shard)


def leads_out(at: Path, patch: Patch) -> None:
    sharded(at, patch)
    outside = at.parent / "outside.safetensors"
    (at / "a.safetensors").rename(outside)
    (at / "a.safetensors").symlink_to(outside)


def many_shards(at: Path, patch: Patch) -> None:
    sharded(at, patch, **{f"t{i}": f"s{i}.safetensors" for i in range(100_000)})


def cut(name: str, n_bytes: int) -> Build:
    def build(at: Path, patch: Patch) -> None:
        (at / name).write_bytes((at / name).read_bytes()[:-n_bytes])

    return build


def bin(content: bytes) -> Build:
    def build(at: Path, patch: Patch) -> Line:
        (at / WEIGHTS).unlink()
        (at / "pytorch_model.bin").write_bytes(content)
        return ("convert", at, at.parent / "new")

    return build


def unconverted(at: Path, patch: Patch) -> None:
    bins.write_bin(at, load_file(at / WEIGHTS), checkpoint.config())
    (at / WEIGHTS).unlink()


def tokenizer(at: Path, patch: Patch, **changes: object) -> None:
    good = json.loads((at / "tokenizer.json").read_text())
    (at / "tokenizer.json").write_text(json.dumps({**good, **changes}))


def vocabulary(ids: object, merges: str = "#version: 0.2\n") -> Build:
    def build(at: Path, patch: Patch) -> None:
        (at / "tokenizer.json").unlink()
        (at / "vocab.json").write_text(json.dumps(ids))
        (at / "merges.txt").write_text(merges)

    return build


def large_tokenizer(at: Path, patch: Patch) -> None:
    good = json.loads((at / "tokenizer.json").read_text())
    good["model"]["vocab"] |= {f"extra{i}": checkpoint.N_TOKENS + i for i in range(100)}
    (at / "tokenizer.json").write_text(json.dumps(good))


def nan(at: Path, patch: Patch) -> None:
    tensors = load_file(at / WEIGHTS)
    tensors[NORM][7] = float("nan")
    save_file(tensors, at / WEIGHTS)


def checked(command: str) -> Build:
    def build(at: Path, patch: Patch) -> Line:
        nan(at, patch)
        return (command, at, *(["x"] if command == "generate" else []), "--check-tensors")

    return build


def plan(header: dict[str, object] | str | None = None, **held: torch.Tensor | None) -> Build:
    """A plan whose header says otherwise (None leaves a key out), or is another text, or whose tensors do."""

    def build(at: Path, patch: Patch) -> None:
        given = plans.said(at, **header) if isinstance(header, dict) else header
        plans.write_plan(at, given, plans.tensors(**held))

    return build


def plan_file(content: bytes) -> Build:
    return holding(plans.NAME, content)


def cut_plan(at: Path, patch: Patch) -> None:
    path = plans.write_plan(at)
    path.write_bytes(path.read_bytes()[:-100])


def machine(**files_of: str) -> Build:
    """A machine whose proc and sys hold these files, ``__`` for a slash and ``_0_`` for a dot."""

    def build(at: Path, patch: Patch) -> Line:
        for name, content in files_of.items():
            path = at.parent / "machine" / name.replace("__", "/").replace("_0_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        patch.setattr(room, "ROOT", at.parent / "machine")
        return ("generate", at, "x", "--dtype", "fp32")

    return build


def full_disk(at: Path, patch: Patch) -> Line:
    unconverted(at, patch)
    usage = shutil.disk_usage(at)
    patch.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    return ("convert", at, at.parent / "new")


def odd_path(at: Path, patch: Patch) -> Line:
    plans.write_plan(at)
    odd = at.with_name(os.fsdecode(b"caf\xe9\n\x1b[31m"))
    at.rename(odd)
    return ("generate", odd, "x", "--max-tokens", 2)


def broken_odd_path(at: Path, patch: Patch) -> Line:
    found = odd_path(at, patch)
    (Path(str(found[1])) / "config.json").write_text("{")
    return found


def line(*words: object) -> Build:
    """A command line about the good model; ``MODEL`` is its directory, ``PARENT`` the one above."""

    def build(at: Path, patch: Patch) -> Line:
        return [str(word).replace("MODEL", str(at)).replace("PARENT", str(at.parent)) for word in words]

    return build


def stdin(content: bytes) -> Build:
    def build(at: Path, patch: Patch) -> Line:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        return ("generate", at, "-", "--max-tokens", 2)

    return build


def trap(at: Path, patch: Patch) -> Line:
    config(at, patch, auto_map={"AutoConfig": "configuration_trap.Trap"})
    (at / "configuration_trap.py").write_text("raise SystemExit('imported')")
    patch.syspath_prepend(at)
    return ("generate", at, "x", "--max-tokens", 2)
