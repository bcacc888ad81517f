"""Rewrite: a directory of .bin weights becomes a directory of safetensors.   (floor 5 · engine)"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from winnow.base.errors import ModelError, UsageError
from winnow.base.files import replacing_directory
from winnow.base.room import check_disk
from winnow.engine.checkpoint import CONFIG, Checkpoint, contained
from winnow.engine.config import LARGEST_JSON_BYTES, read_json
from winnow.engine.convert.pickled import TYPE_NAMES, PickledCheckpoint
from winnow.engine.convert.shards import LARGEST_SHARD_BYTES, Entry, plan_shards, write_shards
from winnow.engine.families import tensor_shapes
from winnow.engine.families.tensors import FLOATS, HEAD, Tensors
from winnow.engine.tokenizer import LARGEST_TOKENIZER_BYTES

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# What may stand beside weights and is data. Code never does, whatever config.json says.
COPIED = {
    "generation_config.json": LARGEST_JSON_BYTES,
    "tokenizer.json": LARGEST_TOKENIZER_BYTES,
    "tokenizer_config.json": LARGEST_JSON_BYTES,
    "special_tokens_map.json": LARGEST_JSON_BYTES,
    "added_tokens.json": LARGEST_JSON_BYTES,
    "vocab.json": LARGEST_TOKENIZER_BYTES,
    "merges.txt": LARGEST_TOKENIZER_BYTES,
    "tokenizer.model": LARGEST_TOKENIZER_BYTES,
    "chat_template.jinja": LARGEST_JSON_BYTES,
    "LICENSE": LARGEST_JSON_BYTES,
    "LICENSE.md": LARGEST_JSON_BYTES,
    "LICENSE.txt": LARGEST_JSON_BYTES,
}


@final
@dataclass(frozen=True)
class Converted:
    """What a conversion wrote: how many tensors in how many files, and which files it copied."""

    n_tensors: int
    n_shards: int
    n_bytes: int
    left_out: tuple[str, ...]
    copied: tuple[str, ...]
    notes: tuple[str, ...]


def convert(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    largest_shard_bytes: int = LARGEST_SHARD_BYTES,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Write the .bin checkpoint in `source` to `target` as safetensors, whole or not at all.

    Values are kept bit for bit; `dtype` (fp32, fp16, bf16) casts the floating ones. A head that is the
    embedding itself is left out where the config ties the two. Config, tokenizer and licence files are
    copied, code never. `report` is told the bytes written and the bytes in all. Cost: reads and writes every
    weight once; memory for one tensor, and only if it is cast or strided.

    Raises UsageError for a `target` that is not new or empty, ModelError for a `source` that is broken,
    foreign, or does not fit its config, ResourceError when the disk has too little room.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}, or none to keep it.")
    _check_target(target)
    model = PickledCheckpoint(source)
    Tensors(model, tensor_shapes(model.config), torch.float32)  # raises what loading it would raise
    left_out = _tied_head(model)
    entries = [_entry(model, name, dtype) for name in model.names() if name not in left_out]
    config = _config(source, dtype)
    small = {name: contained(source, name) for name in COPIED if (source / name).exists()}
    _check_sizes(small)
    shards = plan_shards(entries, largest_shard_bytes)
    total = sum(entry.n_bytes for entry in entries)
    check_disk(total + sum(path.stat().st_size for path in small.values()), target)
    done = 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        report(done, total)

    with replacing_directory(target) as draft:
        (draft / CONFIG).write_bytes(config)
        for name, path in small.items():
            (draft / name).write_bytes(path.read_bytes())
        write_shards(draft, shards, model.tensor, count)
        notes = Checkpoint(draft).notes  # what was written must open
    return Converted(len(entries), len(shards), total, left_out, tuple(small), notes)


def _check_target(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists and is not an empty directory. Name a new one.")


def _tied_head(model: PickledCheckpoint) -> tuple[str, ...]:
    """Return the head's name if it is stored as a second name of the embedding and the config ties them."""
    if not model.config.is_tied or HEAD not in model.names():
        return ()
    shared = any(name != HEAD and model.shares(HEAD, name) for name in model.names())
    return (HEAD,) if shared else ()


def _entry(model: PickledCheckpoint, name: str, dtype: str | None) -> Entry:
    shape, type_name = model.describe(name)
    kept = next(each for each, called in TYPE_NAMES.items() if called == type_name)
    wanted = kept if dtype is None or type_name not in FLOATS else DTYPES[dtype]
    return Entry(name, shape, wanted, TYPE_NAMES[wanted])


def _config(source: Path, dtype: str | None) -> bytes:
    """Return the new config.json: the old one byte for byte, or with the type that was asked for."""
    path = contained(source, CONFIG)
    if dtype is None:
        return path.read_bytes()
    raw: dict[str, Any] = read_json(path)
    for key in ("dtype", "torch_dtype"):
        if key in raw:
            raw[key] = str(DTYPES[dtype]).removeprefix("torch.")
    return json.dumps(raw, indent=2).encode()


def _check_sizes(files: dict[str, Path]) -> None:
    for name, path in files.items():
        if not path.is_file():
            raise ModelError(f"{path} is no file. Download it again.")
        if path.stat().st_size > COPIED[name]:
            raise ModelError(f"{path} has {path.stat().st_size} bytes, expected at most {COPIED[name]}.")
