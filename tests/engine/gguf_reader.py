"""A reader of GGUF for tests, written from the format's description and not from our writer."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SCALARS = {4: "<I", 5: "<i", 6: "<f", 7: "<?"}  # uint32, int32, float32, bool
STRING, ARRAY = 8, 9
GROUP = 32


@dataclass(frozen=True)
class Entry:
    """One tensor as the file announces it; `sizes` begin with the contiguous one."""

    sizes: tuple[int, ...]
    type_number: int
    offset: int


class Gguf:
    """A file read whole."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.at = 4
        assert self.content[:4] == b"GGUF"
        self.version = self._take("<I")
        n_tensors, n_keys = self._take("<Q"), self._take("<Q")
        self.metadata: dict = {}
        self.types: dict[str, int | tuple[int, int]] = {}
        for _ in range(n_keys):
            key, kind = self._string(), self._take("<I")
            self.types[key], self.metadata[key] = self._value(kind)
        self.entries: dict[str, Entry] = {}
        for _ in range(n_tensors):
            name, n_sizes = self._string(), self._take("<I")
            sizes = tuple(self._take("<Q") for _ in range(n_sizes))
            self.entries[name] = Entry(sizes, self._take("<I"), self._take("<Q"))
        self.data_at = -(-self.at // 32) * 32
        self.header_padding = self.content[self.at : self.data_at]

    def array(self, name: str) -> np.ndarray:
        """The tensor as float32, its contiguous axis last."""
        entry = self.entries[name]
        raw = self.content[self.data_at + entry.offset :]
        n = int(np.prod(entry.sizes))
        decode = {0: _f32, 30: _bf16, 8: _q8_0, 2: _q4_0}[entry.type_number]
        return decode(raw, n).reshape(entry.sizes[::-1])

    def _take(self, form: str):
        (value,) = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        n_bytes = self._take("<Q")
        self.at += n_bytes
        return self.content[self.at - n_bytes : self.at].decode()

    def _value(self, kind: int):
        if kind == STRING:
            return kind, self._string()
        if kind == ARRAY:
            item = self._take("<I")
            return (kind, item), [self._value(item)[1] for _ in range(self._take("<Q"))]
        return kind, self._take(SCALARS[kind])


def _f32(raw: bytes, n: int) -> np.ndarray:
    return np.frombuffer(raw, "<f4", n)


def _bf16(raw: bytes, n: int) -> np.ndarray:
    return (np.frombuffer(raw, "<u2", n).astype("<u4") << 16).view("<f4")


def _q8_0(raw: bytes, n: int) -> np.ndarray:
    groups = np.frombuffer(raw, [("d", "<f2"), ("q", "i1", GROUP)], n // GROUP)
    return (groups["d"].astype("f4")[:, None] * groups["q"]).ravel()


def _q4_0(raw: bytes, n: int) -> np.ndarray:
    groups = np.frombuffer(raw, [("d", "<f2"), ("q", "u1", GROUP // 2)], n // GROUP)
    levels = np.concatenate([groups["q"] & 15, groups["q"] >> 4], axis=1).astype("f4") - 8
    return (groups["d"].astype("f4")[:, None] * levels).ravel()
