"""Shards: safetensors files written tensor by tensor.   (floor 5 · engine)

The library's own writer wants every tensor of a file in memory. This one lays the file out from names,
shapes and types alone, then writes the data as it comes: one tensor in memory, whatever the file's size.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from winnow.engine.checkpoint import INDEX, WEIGHTS

LARGEST_SHARD_BYTES = 4 * 10**9
WRITTEN_AT_ONCE = 16 * 2**20


@final
@dataclass(frozen=True)
class Entry:
    """One tensor to be written: its name, shape and type."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    type_name: str

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_shards(entries: Sequence[Entry], largest_bytes: int) -> list[list[Entry]]:
    """Return `entries` in their order, cut into files of at most `largest_bytes` of data.

    A tensor that is larger than that has a file of its own. Within a file, wide types come first: every
    tensor then begins at a multiple of its element's size, as readers want it.
    """
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.n_bytes > largest_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.n_bytes
    return [sorted(shard, key=lambda entry: -entry.dtype.itemsize) for shard in shards]


def shard_names(n_shards: int) -> list[str]:
    """Return the names that the field gives the files of a checkpoint."""
    if n_shards == 1:
        return [WEIGHTS]
    return [f"model-{i:05}-of-{n_shards:05}.safetensors" for i in range(1, n_shards + 1)]


def write_shards(
    directory: Path,
    shards: Sequence[Sequence[Entry]],
    read: Callable[[str], Tensor],
    report: Callable[[int], None],
) -> None:
    """Write `shards` into `directory`, and their index when there are several.

    `read` gives a tensor by name, of the shape that its entry says; it is cast to the entry's type. `report`
    is told how many bytes more are written. Memory: one tensor, and that only if it is cast or strided.
    """
    names = shard_names(len(shards))
    for name, entries in zip(names, shards, strict=True):
        try:
            write_file(directory / name, entries, {"format": "pt"}, read, report)
        except OSError as error:  # a failed write does not say where
            raise OSError(error.errno, error.strerror, name) from error
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(entry.n_bytes for shard in shards for entry in shard)},
            "weight_map": {e.name: name for name, shard in zip(names, shards, strict=True) for e in shard},
        }
        (directory / INDEX).write_text(json.dumps(index, indent=2))


def write_file(
    path: Path,
    entries: Sequence[Entry],
    metadata: Mapping[str, str],
    read: Callable[[str], Tensor],
    report: Callable[[int], None],
) -> None:
    """Write one file of `entries` in their order, as `write_shards` does each of its own."""
    with path.open("wb") as file:
        file.write(header(entries, metadata))
        for entry in entries:
            for piece in pieces(read(entry.name).to(entry.dtype).contiguous(), WRITTEN_AT_ONCE):
                file.write(piece)
                report(len(piece))


def header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes that stand before the data of `entries`: a length, then the table of tensors."""
    table: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.n_bytes
        table[entry.name] = {
            "dtype": entry.type_name,
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def pieces(tensor: Tensor, n_bytes: int) -> Iterator[memoryview]:
    """Yield the bytes of a contiguous tensor, the same memory, in pieces of at most `n_bytes`."""
    if tensor.numel() == 0:
        return
    data = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType] (3.11 has no Buffer)
    for begin in range(0, len(data), n_bytes):
        yield data[begin : begin + n_bytes]
