"""Program: the pickle inside a .bin file, read as data and never run.   (floor 5 · engine)

A pickle is a program for a stack machine. The one that torch.save writes for a table of tensors needs some
thirty instructions and three names: OrderedDict, torch's storage classes, and the function that puts a
tensor together. This walk knows those and refuses everything else, so nothing is imported and nothing is
called. What comes out is a table of plain numbers; whether they fit the file is for `pickled.py` to say.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch

from winnow.base.errors import ModelError
from winnow.engine.config import brief

LONGEST_PROGRAM = 16 * 2**20
MOST_STEPS = 1_000_000
DEEPEST_STACK = 20_000  # tables are filled a thousand pairs at a time
MOST_MARKS = 100
LONGEST_TEXT = 4096
MOST_AXES = 8
STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@final
@dataclass(frozen=True)
class Storage:
    """One entry of the archive, read as `n_elements` numbers of one type."""

    key: str
    dtype: torch.dtype
    n_elements: int


@final
@dataclass(frozen=True)
class View:
    """A tensor as the program describes it, unchecked: a strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """One of the names that a program may use; `dtype` is set for a storage class."""

    spelled: str
    dtype: torch.dtype | None = None


class _Table(dict):
    """What the program calls an OrderedDict."""


_MARK = object()
_ORDERED, _REBUILD = _Name("collections.OrderedDict"), _Name("torch._utils._rebuild_tensor_v2")
_NAMES = {
    ("collections", "OrderedDict"): _ORDERED,
    ("torch._utils", "_rebuild_tensor_v2"): _REBUILD,
    **{("torch", name): _Name(f"torch.{name}", dtype) for name, dtype in STORAGE_TYPES.items()},
}


def read_program(program: bytes, where: str) -> dict[str, View]:
    """Return the tensors that a pickle program describes, by name; messages call it `where`.

    Raises ModelError for every instruction and every name that a table of tensors does not need, for
    programs that are cut short or too long, and for results that are no such table. Cost: one step per
    instruction, at most a million; memory in proportion to the program.
    """
    if len(program) > LONGEST_PROGRAM:
        raise ModelError(f"{where} has {len(program)} bytes of program, expected at most {LONGEST_PROGRAM}.")
    try:
        result = _Walk(program, where).result()
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"{where} is broken (its program is cut short). Download it again.") from error
    if not isinstance(result, dict):
        raise ModelError(f"{where} holds a {_kind(result)}, expected a table of tensors by name.")
    for name, value in result.items():
        if not isinstance(name, str) or not isinstance(value, View):
            raise ModelError(
                f"{where} holds {brief(name)} with a {_kind(value)}, expected names with tensors. "
                "Save the model's state_dict alone."
            )
    return result


@final
class _Walk:
    """One run through a program: its place, its stack and what it has put aside."""

    def __init__(self, program: bytes, where: str) -> None:
        self.program = program
        self.where = where
        self.at = 0
        self.stack: list[object] = []
        self.n_marks = 0
        self.memo: dict[int, object] = {}

    def result(self) -> object:
        for _ in range(MOST_STEPS):
            code = self.program[self.at]
            self.at += 1
            if code == _STOP:
                return self.pop()
            step = _STEPS.get(code)
            if step is None:
                raise self.refused(f"uses the instruction 0x{code:02x}")
            step(self)
            if len(self.stack) > DEEPEST_STACK:
                raise self.refused(f"stacks more than {DEEPEST_STACK} values")
        raise self.refused(f"takes more than {MOST_STEPS} steps")

    def refused(self, what: str) -> ModelError:
        return ModelError(
            f"{self.where} {what}, which no table of tensors needs. Do not load this file anywhere; "
            "look for the model's safetensors."
        )

    def number(self, layout: str) -> int:
        (value,) = struct.unpack_from(layout, self.program, self.at)
        self.at += struct.calcsize(layout)
        return value

    def take(self, size: int) -> bytes:
        if size > len(self.program) - self.at:
            raise IndexError
        self.at += size
        return self.program[self.at - size : self.at]

    def line(self) -> str:
        end = self.program.find(b"\n", self.at, self.at + LONGEST_TEXT)
        if end < 0:
            raise IndexError
        text = self.program[self.at : end].decode()
        self.at = end + 1
        return text

    def text(self, layout: str) -> None:
        size = self.number(layout)
        if size > LONGEST_TEXT:
            raise self.refused(f"holds a text of {size} bytes")
        self.stack.append(self.take(size).decode())

    def pop(self) -> object:
        value = self.stack.pop()
        if value is _MARK:
            raise IndexError
        return value

    def mark(self) -> None:
        if self.n_marks >= MOST_MARKS:
            raise self.refused(f"nests more than {MOST_MARKS} deep")
        self.n_marks += 1
        self.stack.append(_MARK)

    def to_mark(self) -> list[object]:
        """Return what was stacked since the last mark, and drop both."""
        found: list[object] = []
        while (value := self.stack.pop()) is not _MARK:
            found.append(value)
        self.n_marks -= 1
        return found[::-1]

    def tuple_of(self, size: int) -> None:
        values = [self.pop() for _ in range(size)]
        self.stack.append(tuple(values[::-1]))

    def long_number(self) -> None:
        size = self.number("<B")
        if size > 8:
            raise self.refused(f"holds a number of {size} bytes")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def put(self, index: int) -> None:
        value = self.pop()
        self.memo[index] = value
        self.stack.append(value)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise IndexError
        self.stack.append(self.memo[index])

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.refused(f"spells a name by a {_kind(name)}")
        found = _NAMES.get((module, name))
        if found is None:
            raise self.refused(f"asks for {brief(f'{module}.{name}', 100)}")
        self.stack.append(found)

    def set_items(self, values: list[object]) -> None:
        table = self.pop()
        if not isinstance(table, dict) or len(values) % 2:
            raise self.refused(f"fills a {_kind(table)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise self.refused(f"names an entry by a {_kind(key)}")
            if key in table:
                raise self.refused(f"names {brief(key)} twice")
            table[key] = value
        self.stack.append(table)

    def append(self, values: list[object]) -> None:
        row = self.pop()
        if not isinstance(row, list):
            raise self.refused(f"appends to a {_kind(row)}")
        row.extend(values)
        self.stack.append(row)

    def build(self) -> None:
        """Pass over the state of a table, where torch keeps the versions of modules."""
        self.pop()
        table = self.pop()
        if not isinstance(table, _Table):
            raise self.refused(f"sets the state of a {_kind(table)}")
        self.stack.append(table)

    def storage(self) -> None:
        match self.pop():
            case ("storage", _Name(dtype=torch.dtype() as dtype), str(key), str(), int(n_elements)):
                self.stack.append(Storage(key, dtype, n_elements))
            case _:
                raise self.refused("describes a storage in a way of its own")

    def call(self) -> None:
        arguments, name = self.pop(), self.pop()
        match name, arguments:
            case _Name(), () if name is _ORDERED:
                self.stack.append(_Table())
            case _Name(), (Storage() as storage, int(offset), tuple(shape), tuple(stride), *_) if (
                name is _REBUILD and len(arguments) in (6, 7) and _are_whole(shape) and _are_whole(stride)
            ):
                self.stack.append(View(storage, offset, shape, stride))
            case _Name(), _:
                raise self.refused(f"calls {name.spelled} in a way of its own")
            case _:
                raise self.refused(f"calls a {_kind(name)}")


def _are_whole(numbers: tuple[object, ...]) -> bool:
    return len(numbers) <= MOST_AXES and all(type(number) is int for number in numbers)


def _kind(value: object) -> str:
    """Name the type of a value; the value itself may be a small text that prints as gigabytes."""
    kinds = {_Name: "name", _Table: "table", dict: "table", View: "tensor", type(None): "nothing"}
    return kinds.get(type(value), type(value).__name__)


_STOP = ord(".")
_STEPS: dict[int, Callable[[_Walk], object]] = {
    0x80: lambda walk: walk.number("<B"),  # the protocol
    0x95: lambda walk: walk.number("<Q"),  # a frame
    ord("("): _Walk.mark,
    ord("0"): _Walk.pop,
    ord("N"): lambda walk: walk.stack.append(None),
    0x88: lambda walk: walk.stack.append(True),
    0x89: lambda walk: walk.stack.append(False),
    ord("K"): lambda walk: walk.stack.append(walk.number("<B")),
    ord("M"): lambda walk: walk.stack.append(walk.number("<H")),
    ord("J"): lambda walk: walk.stack.append(walk.number("<i")),
    ord("G"): lambda walk: walk.stack.append(struct.unpack(">d", walk.take(8))[0]),
    0x8A: _Walk.long_number,
    ord("X"): lambda walk: walk.text("<I"),
    0x8C: lambda walk: walk.text("<B"),
    ord("c"): lambda walk: walk.name(walk.line(), walk.line()),
    0x93: lambda walk: walk.name(*[walk.pop(), walk.pop()][::-1]),
    ord(")"): lambda walk: walk.stack.append(()),
    0x85: lambda walk: walk.tuple_of(1),
    0x86: lambda walk: walk.tuple_of(2),
    0x87: lambda walk: walk.tuple_of(3),
    ord("t"): lambda walk: walk.stack.append(tuple(walk.to_mark())),
    ord("]"): lambda walk: walk.stack.append([]),
    ord("a"): lambda walk: walk.append([walk.pop()]),
    ord("e"): lambda walk: walk.append(walk.to_mark()),
    ord("}"): lambda walk: walk.stack.append({}),
    ord("s"): lambda walk: walk.set_items([walk.pop(), walk.pop()][::-1]),
    ord("u"): lambda walk: walk.set_items(walk.to_mark()),
    ord("q"): lambda walk: walk.put(walk.number("<B")),
    ord("r"): lambda walk: walk.put(walk.number("<I")),
    0x94: lambda walk: walk.put(len(walk.memo)),
    ord("h"): lambda walk: walk.get(walk.number("<B")),
    ord("j"): lambda walk: walk.get(walk.number("<I")),
    ord("Q"): _Walk.storage,
    ord("R"): _Walk.call,
    ord("b"): _Walk.build,
}
