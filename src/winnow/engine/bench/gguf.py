"""GGUF: the file that llama.cpp reads, written tensor by tensor.   (floor 5 · engine)

    head      "GGUF", version 3, number of tensors, number of keys
    keys      name, type, value
    tensors   name, sizes with the contiguous one first, type, offset into the data
    data      each tensor at a multiple of 32 bytes

All numbers are little endian. A matrix is held in one of four encodings:

    fp32   the number                                                            32 bits a weight
    bf16   its upper half                                                        16
    Q8_0   groups of 32: fp16 d = max|x| / 127, then round(x / d) as int8        8.5
    Q4_0   groups of 32: fp16 d = m / -8 with m the x that is farthest from 0,   4.5
           then round(x / d) + 8 within 0..15; byte j holds weight j below weight j + 16
"""

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.base.files import replacing

VERSION = 3
ALIGNMENT = 32
GROUP = 32
BLOCK_WEIGHTS = 1 << 22  # encoded at a time, so that a large embedding has no large copies
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # the types of values

Scalar = bool | int | float | str
Value = Scalar | Sequence[str] | Sequence[float] | Sequence[int]


@final
@dataclass(frozen=True)
class Encoding:
    """How weights are held: `group` of them take `group_bytes`; `number` is its name in the file."""

    name: str
    number: int
    group: int
    group_bytes: int
    encode: Callable[[Float[Tensor, "groups group"]], UInt8[Tensor, "groups bytes"]]

    def n_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape; raises UsageError when groups do not fit into its rows."""
        if shape[-1] % self.group:
            raise UsageError(
                f"{self.name} holds rows in groups of {self.group}, received rows of {shape[-1]}; "
                "use --dtype bf16."
            )
        return math.prod(shape) // self.group * self.group_bytes


def _raw(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def _q8_0(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    levels = torch.round(x / scale.where(scale > 0, 1.0))
    return torch.cat([_raw(scale.half()), _raw(levels.to(torch.int8))], dim=-1)


def _q4_0(x: Tensor) -> Tensor:
    farthest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    scale = farthest / -8
    levels = (torch.round(x / scale.where(scale != 0, 1.0)) + 8).clamp(0, 15).to(torch.uint8)
    low, high = levels.chunk(2, dim=-1)
    return torch.cat([_raw(scale.half()), low | high << 4], dim=-1)


FP32 = Encoding("fp32", 0, 1, 4, _raw)
BF16 = Encoding("bf16", 30, 1, 2, lambda x: _raw(x.bfloat16()))
Q8_0 = Encoding("Q8_0", 8, GROUP, 34, _q8_0)
Q4_0 = Encoding("Q4_0", 2, GROUP, 18, _q4_0)


@final
@dataclass(frozen=True)
class GgufTensor:
    """A tensor that is read when its turn to be written comes; `shape` is torch's, its rows last."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    read: Callable[[], Tensor]

    @property
    def n_bytes(self) -> int:
        """Bytes in the file, the space behind it aside."""
        return self.encoding.n_bytes(self.shape)


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[GgufTensor]) -> None:
    """Write a file with these keys and tensors, whole or not at all.

    Whole numbers become uint32 and, in lists, int32; other numbers float32. Memory: one tensor as it is
    read. Raises UsageError before anything is written when a tensor's rows do not fit its encoding.
    """
    sizes = [_aligned(tensor.n_bytes) for tensor in tensors]
    with replacing(path) as draft, draft.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + _typed(value))
        offset = 0
        for tensor, size in zip(tensors, sizes, strict=True):
            file.write(_entry(tensor, offset))
            offset += size
        _pad(file)
        for tensor in tensors:
            file.writelines(_encoded(tensor))
            _pad(file)


def _encoded(tensor: GgufTensor) -> Iterator[memoryview]:
    encoding = tensor.encoding
    held = tensor.read()
    assert held.shape == tensor.shape, f"{tensor.name} is {list(held.shape)}, {tensor.shape} was announced"
    for block in held.reshape(-1, encoding.group).split(BLOCK_WEIGHTS // encoding.group):
        yield encoding.encode(block.float()).numpy().data


def _entry(tensor: GgufTensor, offset: int) -> bytes:
    sizes = tensor.shape[::-1]
    numbers = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, tensor.encoding.number, offset)
    return _text(tensor.name) + numbers


def _typed(value: Value) -> bytes:
    if isinstance(value, Scalar):
        kind = _kind(value)
        return struct.pack("<I", kind) + _plain(value, kind)
    kind = _kind(value[0])
    kind = I32 if kind == U32 else kind
    return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(_plain(each, kind) for each in value)


def _kind(value: Scalar) -> int:
    return {bool: BOOL, int: U32, float: F32, str: STRING}[type(value)]


def _plain(value: Scalar, kind: int) -> bytes:
    if isinstance(value, str):
        return _text(value)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], value)


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
