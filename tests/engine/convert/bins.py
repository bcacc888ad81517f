"""Files as torch.save writes them, built by hand, so that every byte can be another."""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

STORAGES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
}
PROTOCOL, STOP, MARK, TUPLE, REDUCE, SETITEMS, EMPTY_TUPLE = b"\x80\x02", b".", b"(", b"t", b"R", b"u", b")"
PERSISTENT, FALSE, BUILD, EMPTY_DICT = b"Q", b"\x89", b"b", b"}"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


ORDERED_DICT = name("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE
REBUILD = name("torch._utils", "_rebuild_tensor_v2")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def wholes(values: tuple[int, ...]) -> bytes:
    return MARK + b"".join(map(whole, values)) + TUPLE


@dataclass
class Claim:
    """What a program says of one tensor; it need not be true."""

    key: str
    storage: str
    n_elements: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def program(self) -> bytes:
        persistent = text("storage") + name("torch", self.storage) + text(self.key) + text("cpu")
        persistent = MARK + persistent + whole(self.n_elements) + TUPLE + PERSISTENT
        view = whole(self.offset) + wholes(self.shape) + wholes(self.stride)
        return REBUILD + MARK + persistent + view + FALSE + ORDERED_DICT + TUPLE + REDUCE


def table(items: Mapping[str, bytes]) -> bytes:
    """The program of a state_dict, its metadata included."""
    filled = ORDERED_DICT + MARK + b"".join(text(key) + value for key, value in items.items()) + SETITEMS
    state = EMPTY_DICT + text("_metadata") + ORDERED_DICT + b"s"
    return PROTOCOL + filled + state + BUILD + STOP


@dataclass
class Zip:
    """The entries of an archive, and what may be wrong with it."""

    entries: dict[str, bytes]
    method: int = 0
    flags: int = 0x808
    alignment: int = 64
    claimed_bytes: dict[str, int] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)

    def content(self) -> bytes:
        out, directory = bytearray(), bytearray()
        for entry, data in self.entries.items():
            spelled, place = entry.encode(), len(out)
            padding = -(place + 30 + len(spelled) + 4) % self.alignment
            extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
            local = (b"PK\x03\x04", 0, self.flags, self.method, 0, 0, 0, 0, 0, len(spelled), len(extra))
            out += struct.pack("<4s5H3L2H", *local) + spelled + extra + data
            size = self.claimed_bytes.get(entry, len(data))
            crc, at = zlib.crc32(data), place + self.moved.get(entry, 0)
            fields = (b"PK\x01\x02", 0, 0, self.flags, self.method, 0, 0, crc, len(data), size, len(spelled))
            directory += struct.pack("<4s6H3L5H2L", *fields, 0, 0, 0, 0, 0, at) + spelled
        n_entries, place = len(self.entries), len(out)
        end = (b"PK\x05\x06", 0, 0, n_entries, n_entries, len(directory), place, 0)
        return bytes(out + directory + struct.pack("<4s4H2LH", *end))


def claims(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Claim], dict[str, bytes]]:
    """What torch.save says of `tensors`, and its storages; tensors that share memory share a storage."""
    said: dict[str, Claim] = {}
    storages: dict[str, bytes] = {}
    keys: dict[int, str] = {}
    for each, tensor in tensors.items():
        storage = tensor.untyped_storage()
        key = keys.setdefault(storage.data_ptr(), str(len(keys)))
        storages[key] = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()
        n_elements = storage.nbytes() // tensor.element_size()
        place = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        said[each] = Claim(key, STORAGES[tensor.dtype], n_elements, *place)
    return said, storages


def archive(program: bytes, storages: Mapping[str, bytes]) -> Zip:
    entries = {"archive/data.pkl": program, "archive/byteorder": b"little"}
    entries |= {f"archive/data/{key}": data for key, data in storages.items()}
    return Zip(entries | {"archive/version": b"3\n"})


def of(tensors: Mapping[str, Tensor]) -> Zip:
    """The archive of `tensors`."""
    said, storages = claims(tensors)
    return archive(table({each: claim.program() for each, claim in said.items()}), storages)


def write_bin(directory: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> Path:
    """Write a checkpoint with one .bin file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "pytorch_model.bin").write_bytes(of(tensors).content())
    return directory


def write_bin_shards(
    directory: Path, shards: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, object]
) -> Path:
    """Write a checkpoint with several .bin files and their index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    for file, tensors in shards.items():
        (directory / file).write_bytes(of(tensors).content())
    found = {each: file for file, tensors in shards.items() for each in tensors}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": found}))
    return directory
