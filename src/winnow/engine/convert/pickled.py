"""Pickled: the tensors of .bin files, each held against the bytes that are there.   (floor 5 · engine)

Nothing is unpickled: `program.py` says which views the file claims, and no view leaves this room unless its
storage lies in the file and every one of its elements lies in its storage.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from winnow.base.errors import ModelError
from winnow.engine.checkpoint import CONFIG, PICKLED, PICKLED_INDEX, contained, read_config, weight_map
from winnow.engine.config import brief
from winnow.engine.convert.archive import Archive
from winnow.engine.convert.program import View, read_program

PROGRAM = "data.pkl"
TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@final
class TorchFile:
    """One .bin file: its tensors by name, as views of the mapped file.

    Raises ModelError for a file that is no archive of torch's, a program that asks for more than tensors,
    and every view that its storage does not hold. No more elements are offered than twice what the file
    stores, so what is read from it stays in proportion to it.
    """

    def __init__(self, path: Path) -> None:
        """Open and check the file at `path`; no tensor is read."""
        self.path = path
        self._archive = Archive(path)
        self._stem = self._find_stem()
        order = f"{self._stem}byteorder"
        if order in self._archive.names() and bytes(self._archive.view(order)) != b"little":
            raise ModelError(
                f"{path} was saved on a big-endian machine. Save it anew on a little-endian one."
            )
        program = self._archive.view(f"{self._stem}{PROGRAM}")
        self.views = read_program(bytes(program[: program.nbytes]), f"{path}")
        for name, view in self.views.items():
            self._check(name, view)
        total = sum(math.prod(view.shape) * view.storage.dtype.itemsize for view in self.views.values())
        if total > 2 * self._archive.n_bytes:
            raise self._archive.broken(f"its tensors claim {total} bytes of {self._archive.n_bytes}")

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`, read-only by agreement: it is the mapped file itself."""
        view = self.views[name]
        if 0 in view.shape:
            return torch.empty(view.shape, dtype=view.storage.dtype)
        data = self._archive.view(f"{self._stem}data/{view.storage.key}")
        whole = torch.frombuffer(data, dtype=view.storage.dtype, count=view.storage.n_elements)
        return whole.as_strided(view.shape, view.stride, view.offset)

    def _find_stem(self) -> str:
        stems = [name.removesuffix(PROGRAM) for name in self._archive.names() if name.endswith(f"/{PROGRAM}")]
        if len(stems) != 1:
            raise self._archive.broken(f"it holds {len(stems)} files called {PROGRAM}, expected one")
        return stems[0]

    def _check(self, name: str, view: View) -> None:
        storage, what = view.storage, f"{brief(name, 120)} has"
        numbers = (storage.n_elements, view.offset, *view.shape, *view.stride)
        if min(numbers) < 0 or len(view.shape) != len(view.stride):
            raise self._archive.broken(
                f"{what} shape {view.shape}, stride {view.stride}, offset {view.offset}"
            )
        size = self._archive.size(f"{self._stem}data/{storage.key}")
        if storage.n_elements * storage.dtype.itemsize > size:
            raise self._archive.broken(
                f"{what} {storage.n_elements} {TYPE_NAMES[storage.dtype]} in storage, its entry {size} bytes"
            )
        n_elements = math.prod(view.shape)
        last = view.offset + sum((n - 1) * step for n, step in zip(view.shape, view.stride, strict=True))
        if n_elements and (last >= storage.n_elements or n_elements > storage.n_elements):
            raise self._archive.broken(
                f"{what} shape {view.shape} and stride {view.stride} from {view.offset}, "
                f"which leaves its storage of {storage.n_elements}"
            )


@final
class PickledCheckpoint:
    """A model directory whose weights are .bin files, offered as a checkpoint is: by names and shapes."""

    def __init__(self, directory: Path) -> None:
        """Open every .bin file of `directory`; raises ModelError when one is missing, broken or foreign."""
        self.directory = directory
        self.config = read_config(directory)
        self.files = tuple(TorchFile(contained(directory, name)) for name in _names(directory))
        self._file_of: dict[str, TorchFile] = {}
        for file in self.files:
            for name in file.views:
                if name in self._file_of:
                    raise ModelError(
                        f"{brief(name)} is in both {self._file_of[name].path} and {file.path.name}. "
                        "Download them again."
                    )
                self._file_of[name] = file
        self._check_index()

    def names(self) -> Iterable[str]:
        """Names of all tensors, in the order of the files."""
        return self._file_of.keys()

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and type of a tensor."""
        view = self._file_of[name].views[name]
        return view.shape, TYPE_NAMES[view.storage.dtype]

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`: a view of the mapped file, perhaps not contiguous."""
        return self._file_of[name].tensor(name)

    def shares(self, name: str, other: str) -> bool:
        """Whether two tensors are the same elements of the same file."""
        file = self._file_of[name]
        return self._file_of[other] is file and file.views[name] == file.views[other]

    def _check_index(self) -> None:
        if (self.directory / PICKLED).exists():
            return
        table = weight_map(self.directory, PICKLED_INDEX, ".bin")
        found = {name: file.path.name for name, file in self._file_of.items()}
        astray = sorted(name for name in table.keys() | found.keys() if table.get(name) != found.get(name))
        if astray:
            raise ModelError(
                f"{self.directory / PICKLED_INDEX} places {brief(astray[0])} in {table.get(astray[0])}, the "
                f"files hold it in {found.get(astray[0])}. Download index and shards together."
            )


def _names(directory: Path) -> list[str]:
    if (directory / PICKLED).exists() or (directory / PICKLED).is_symlink():
        return [PICKLED]
    if (directory / PICKLED_INDEX).exists():
        return sorted(set(weight_map(directory, PICKLED_INDEX, ".bin").values()))
    raise ModelError(
        f"{directory} holds neither {PICKLED} nor {PICKLED_INDEX} ({CONFIG} alone is no model). "
        "Name a directory with .bin weights; safetensors need no conversion."
    )
