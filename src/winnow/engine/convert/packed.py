"""Packed: a model's weights as the kernels read them, in a file beside it.   (floor 5 · engine)

The bytes of its tensors are those of the memory, so reading them takes the place of packing. Its metadata
says of which checkpoint they were made, in which types and for which layout of the kernels. A file that says
anything else than what is wanted is refused, and one whose header is not, byte for byte, what would be
written now. The numbers themselves carry no check sum, as those of a checkpoint carry none.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import BinaryIO, final

import torch
from torch import Tensor

from winnow.base.errors import ModelError, UsageError
from winnow.base.files import replacing
from winnow.base.room import check_disk, check_memory
from winnow.engine.checkpoint import Checkpoint, contained
from winnow.engine.config import brief
from winnow.engine.convert.parts import first_broken, first_unsound, is_coded, parts
from winnow.engine.convert.pickled import TYPE_NAMES
from winnow.engine.convert.shards import Entry, header, pieces, write_file
from winnow.engine.families import empty_weights, load_weights
from winnow.engine.weights import DTYPES, Weights
from winnow.kernels.operands import RECORD_ALIGNMENT_BYTES
from winnow.kernels.pack import GROUP

# To be raised whenever the kernels round or lay out weights in another way; a test pins the bits.
FORMAT = "winnow-packed/4"
KEY, CODED = "winnow", "is_coded"
LAYOUT = {"record_alignment": RECORD_ALIGNMENT_BYTES, "int4_group": GROUP}
LARGEST_HEADER_BYTES = 64 * 2**20
READ_AT_ONCE = 8 * 2**20


@final
@dataclass(frozen=True)
class Form:
    """How weights are held: in which types, by their names, and whether so that heads can be left out."""

    dtype: str
    head_dtype: str
    by_head: bool = False

    @property
    def file_name(self) -> str:
        """What a packed file of this form is called beside its model."""
        head = "" if self.head_dtype == self.dtype else f"-head-{self.head_dtype}"
        return f"winnow-packed-{self.dtype}{head}{'-by-head' if self.by_head else ''}.safetensors"

    @property
    def options(self) -> str:
        """The options of `winnow convert --pack` that make it."""
        head = "" if self.head_dtype == self.dtype else f" --head-dtype {self.head_dtype}"
        return f"--pack --dtype {self.dtype}{head}"


@final
@dataclass(frozen=True)
class Packed:
    """What was written: the file, how many tensors it holds and how many bytes they take."""

    path: Path
    n_tensors: int
    n_bytes: int


def pack(
    checkpoint: Checkpoint,
    form: Form,
    directory: Path,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Packed:
    """Write the weights of `checkpoint`, packed in `form`, to a file in `directory`, whole or not at all.

    A file of that form is replaced. `report` is told the bytes written and the bytes in all. Cost: memory as
    for loading the model, disk for the packed bytes. Raises what loading raises, ResourceError where memory
    or disk has too little room, ModelError for weights that are NaN or infinite.
    """
    path = directory / form.file_name
    check_disk(sum(entry.n_bytes for entry in _entries(_empty(checkpoint, form, False))), path)
    _check_writable(directory, checkpoint, form)
    wanted = _wanted(checkpoint, form)  # first: a source that changes meanwhile is another one
    weights = _packed_now(checkpoint, form)
    metadata = _metadata(wanted, is_coded(weights))
    entries = _entries(weights)
    total = sum(entry.n_bytes for entry in entries)
    broken = first_broken(weights)
    if broken is not None:
        raise ModelError(
            f"{checkpoint.directory} has NaN or infinite weights in {broken}; winnow inspect --check-tensors "
            "names the tensor. Download it again."
        )
    held, done = parts(weights), 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        report(done, total)

    with replacing(path) as draft:
        try:
            write_file(draft, entries, metadata, held.__getitem__, count)
        except OSError as error:  # a failed write does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error
    return Packed(path, len(entries), total)


def _check_writable(directory: Path, checkpoint: Checkpoint, form: Form) -> None:
    """Raise UsageError, before the longer work begins, where no file can be made in `directory`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UsageError(
            f"{directory} cannot be written ({error.strerror}). Name another place: "
            f"winnow convert {checkpoint.directory} DST {form.options}"
        ) from error


def open_weights(checkpoint: Checkpoint, form: Form, packed: str | Path | None) -> Weights:
    """Return the weights of `checkpoint`: read from a packed file where there is one, else packed now.

    `packed` is "auto" for the file beside the weights, which is left aside with a warning where it does not
    fit; or another file, which must fit; or None. Both ways give the same bits. Raises ModelError, and
    ResourceError where memory is too small.
    """
    if packed == "auto":
        try:
            path = find_packed(checkpoint.directory, form)
            if path is not None:
                return read_packed(path, checkpoint, form)
        except ModelError as error:
            warnings.warn(
                f"{error} Until then the weights are packed as they are loaded.", RuntimeWarning, stacklevel=3
            )
    elif packed is not None:
        return read_packed(Path(packed), checkpoint, form)
    return _packed_now(checkpoint, form)


def find_packed(directory: Path, form: Form) -> Path | None:
    """Return the packed file of `form` that lies beside the weights, if any; raises ModelError if it is a
    link that leads out of the directory.
    """
    path = directory / form.file_name
    return contained(directory, form.file_name) if path.is_file() else None


def read_packed(path: Path, checkpoint: Checkpoint, form: Form) -> Weights:
    """Return the weights that the packed file at `path` holds, if they are those of `checkpoint` in `form`.

    Reads each byte once, into the memory where it stays. Raises ModelError for a file that is missing,
    broken, of another version, form or checkpoint, with the command that makes it anew.
    """
    with _refusing(path, checkpoint, form), path.open("rb", buffering=0) as file:
        weights, begin = _checked(file, checkpoint, form)
        check_memory(sum(tensor.nbytes for tensor in parts(weights).values()), str(path))
        _fill(file, begin, weights)
    return weights


def packed_files(checkpoint: Checkpoint) -> dict[Path, str]:
    """Return which packed files lie beside the weights and why each does not fit them, "" where it does.

    Looks at headers and sizes, not at the data.
    """
    found: dict[Path, str] = {}
    for dtype, head_dtype, by_head in product(DTYPES, DTYPES, (False, True)):
        form = Form(dtype, head_dtype, by_head)
        try:
            path = find_packed(checkpoint.directory, form)
            if path is not None:
                found[path] = ""
                with _refusing(path, checkpoint, form), path.open("rb", buffering=0) as file:
                    _checked(file, checkpoint, form)
        except (ModelError, UsageError) as error:
            found[checkpoint.directory / form.file_name] = str(error)
    return found


@contextmanager
def _refusing(path: Path, checkpoint: Checkpoint, form: Form) -> Iterator[None]:
    """Turn what is said of a file into the whole sentence."""
    try:
        yield
    except (ModelError, OSError) as error:
        reason = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise ModelError(
            f"{path} {reason}. Make it anew: winnow convert {checkpoint.directory} {form.options}."
        ) from None


def _checked(file: BinaryIO, checkpoint: Checkpoint, form: Form) -> tuple[Weights, int]:
    """Return memory laid out for what `file` holds, and where its data begins."""
    said, wanted = _said(file), _wanted(checkpoint, form)
    _check_said(said, wanted, checkpoint.directory)
    weights = _empty(checkpoint, form, said.get(CODED) is True)
    return weights, _check_layout(file, _entries(weights), _metadata(wanted, is_coded(weights)))


def _packed_now(checkpoint: Checkpoint, form: Form) -> Weights:
    held, held_head = DTYPES[form.dtype], DTYPES[form.head_dtype]
    check_memory(checkpoint.memory_bytes(held, held_head), str(checkpoint.directory))
    return load_weights(checkpoint, held, head_dtype=held_head, by_head=form.by_head)


def _empty(checkpoint: Checkpoint, form: Form, is_coded: bool) -> Weights:
    held, held_head = DTYPES[form.dtype], DTYPES[form.head_dtype]
    return empty_weights(
        checkpoint.config, held, head_dtype=held_head, by_head=form.by_head, is_coded=is_coded
    )


def _wanted(checkpoint: Checkpoint, form: Form) -> dict[str, object]:
    """Return what a packed file of `form` says of itself when it fits.

    Large weight files enter the model's hash by samples; their sizes and times tell edits between those.
    """
    stats = {path.name: path.stat() for path in checkpoint.paths}
    return {
        "format": FORMAT,
        "dtype": form.dtype,
        "head_dtype": form.head_dtype,
        "by_head": form.by_head,
        "layout": LAYOUT,
        "model_hash": checkpoint.content_hash(),
        "files": {name: [stat.st_size, int(stat.st_mtime)] for name, stat in stats.items()},
    }


def _metadata(wanted: dict[str, object], is_coded: bool) -> dict[str, str]:
    return {KEY: json.dumps({**wanted, CODED: is_coded})}


def _entries(weights: Weights) -> list[Entry]:
    """Return what is to be written, wide types first: each tensor then begins where its elements may."""
    found = [
        Entry(name, tuple(tensor.shape), tensor.dtype, TYPE_NAMES[tensor.dtype])
        for name, tensor in parts(weights).items()
    ]
    return sorted(found, key=lambda entry: -entry.dtype.itemsize)


def _said(file: BinaryIO) -> dict[str, object]:
    """Return what a file says of itself; the rest of its header is looked at later."""
    try:
        n_bytes = int.from_bytes(file.read(8), "little")
        if n_bytes > LARGEST_HEADER_BYTES:
            raise ValueError(f"its header claims {n_bytes} bytes")
        said = json.loads(json.loads(file.read(n_bytes))["__metadata__"][KEY])
        if not isinstance(said, dict):
            raise TypeError(f"it says {brief(said)} of itself")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"is no packed model ({brief(str(error), 200)})") from None
    return said


def _check_said(said: dict[str, object], wanted: dict[str, object], directory: Path) -> None:
    if said.get("format") != FORMAT:
        raise ModelError(f"has format {brief(said.get('format'))}, this Winnow reads {FORMAT}")
    if any(said.get(key) != wanted[key] for key in ("model_hash", "files")):
        raise ModelError(f"was made of other weights than {directory} holds now")
    if said.get("layout") != LAYOUT:
        raise ModelError("is laid out for the kernels of another Winnow")
    for key in ("dtype", "head_dtype", "by_head"):
        if said.get(key) != wanted[key]:
            raise ModelError(f"says {key} is {brief(said.get(key))}, expected {wanted[key]!r}")


def _check_layout(file: BinaryIO, entries: list[Entry], metadata: dict[str, str]) -> int:
    """Return where the data begins, once the header and the file's size are exactly what they must be."""
    expected = header(entries, metadata)
    file.seek(0)
    if file.read(len(expected)) != expected:
        raise ModelError("has a header that does not fit this model: other tensors, shapes or places")
    size, needed = os.fstat(file.fileno()).st_size, len(expected) + sum(entry.n_bytes for entry in entries)
    if size != needed:
        raise ModelError(f"has {size} bytes, expected {needed}, as after a copy cut short")
    return len(expected)


def _fill(file: BinaryIO, begin: int, weights: Weights) -> None:
    """Read the data, which starts at `begin`, into the memory of `weights`, several pieces at a time."""
    held = parts(weights)
    jobs = _jobs(begin, [held[entry.name] for entry in _entries(weights)])
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        # Each place is read by one thread alone, whatever their number.
        list(pool.map(lambda job: _read(file.fileno(), *job), jobs))
    broken = first_broken(weights)
    if broken is not None:
        raise ModelError(f"holds NaN or infinite scales or biases in {broken}")
    unsound = first_unsound(weights)
    if unsound is not None:
        raise ModelError(f"holds coded weights that lie outside their rows in {unsound}")


def _jobs(begin: int, tensors: list[Tensor]) -> Iterator[tuple[int, memoryview]]:
    for tensor in tensors:
        for piece in pieces(tensor, READ_AT_ONCE):
            yield begin, piece
            begin += len(piece)


def _read(descriptor: int, place: int, piece: memoryview) -> None:
    while len(piece):
        n_bytes = os.preadv(descriptor, [piece], place)
        if n_bytes == 0:
            raise ModelError("ended while it was read")
        place, piece = place + n_bytes, piece[n_bytes:]
