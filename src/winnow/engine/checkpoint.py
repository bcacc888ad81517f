"""Checkpoint: a model directory or hub id, opened without running anything in it.   (floor 5 · engine)

A directory holds config.json, safetensors weights (one file, or shards with an index) and a tokenizer.
Every file is reached through one gate that keeps it inside the directory. Headers are checked by
safetensors itself. Nothing here unpickles, and code beside the weights is never imported. Weights of other
kinds are refused with the reason and the way round.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from winnow.base.errors import ModelError, UsageError
from winnow.engine.config import Fields, ModelConfig, brief, read_json, refuse_lfs_pointer
from winnow.engine.families import parse_config
from winnow.kernels import int4

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
GENERATION = "generation_config.json"
WANTED = ("*.json", "*.safetensors", "merges.txt", "*.jinja")
WANTED_PICKLED = ("*.json", "pytorch_model*.bin", "merges.txt", "LICENSE*", "*.jinja", "tokenizer.model")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
SHARD_NAME = re.compile(r"[\w.-]{1,200}")
BUNDLED = ("pico", "pico-llama")
MOST_SHARDS = 1000
LARGEST_INDEX_BYTES = 32 * 2**20
# Files up to this size enter the content hash whole, larger ones by their header and samples.
HASHED_WHOLE_BYTES = 64 * 2**20
SAMPLE_BYTES = 2**12
N_SAMPLES = 2**12
LONGEST_SHOWN_PATH = 1000
GGUF_MARK = b"GGUF"
# Tensors that only quantised checkpoints hold: GPTQ and AWQ, bitsandbytes, compressed-tensors.
QUANTISED = re.compile(
    r"\.(qweight|qzeros|g_idx|SCB|weight_packed|weight_scale|weight_scale_inv)$|\.weight\.(absmax|quant_map|quant_state)"
)
DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
ITEM_BYTES = {name: dtype.itemsize for dtype, name in DTYPE_NAMES.items()}
# What a weight takes once it is loaded, scales included.
WEIGHT_BYTES = {torch.float32: 4.0, torch.bfloat16: 2.0, torch.int8: 1.01, int4: 0.5625}
# Keys of config.json that say who saved it, not what it is.
VOLATILE_KEYS = ("_name_or_path", "transformers_version")


@final
class Checkpoint:
    """A model on disk: its config, its tensors by name and a hash of its content."""

    def __init__(self, directory: Path) -> None:
        """Open the files of `directory`; `Checkpoint.open` also takes hub ids."""
        self.directory = directory
        self.raw_config = read_json(contained(directory, CONFIG))
        self.config = _with_generation_ends(parse_config(self.raw_config, str(directory / CONFIG)), directory)
        self.paths = _weight_files(directory)
        self._files = {path: _open_safetensors(path) for path in self.paths}
        self._file_of = _index_names(self._files)
        _refuse_quantised(directory, self._file_of)
        _check_index(directory, {name: path.name for name, path in self._file_of.items()})

    @classmethod
    def open(cls, model: str | Path, *, offline: bool = False) -> "Checkpoint":
        """Open a model directory, or a hub id such as ``facebook/opt-125m`` through huggingface_hub.

        `offline` takes hub ids from the local cache only. Raises ModelError when nothing is found, and for
        every broken, unsupported or escaping file.
        """
        return cls(find_directory(model, offline=offline))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about this checkpoint though it is no error, one line each."""
        if "auto_map" not in self.raw_config:
            return ()
        return (f"{self.directory / CONFIG} names code of its own (auto_map); Winnow never runs it.",)

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._file_of.keys()

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and type of a tensor, from the header alone."""
        entry = self._files[self._file_of[name]].get_slice(name)
        return tuple(entry.get_shape()), entry.get_dtype()

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`; raises ModelError when its data cannot be read."""
        path = self._file_of[name]
        try:
            # A map of its own: its pages count as this process's memory until the tensor is dropped.
            return _open_safetensors(path).get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ModelError(
                f"{path}: {name} cannot be read ({brief(str(error))}). Download it again."
            ) from error

    def memory_bytes(self, dtype: torch.dtype, head_dtype: torch.dtype | None = None) -> int:
        """Bytes that loading takes, by the headers: every weight in its type, and one as it is stored."""
        described = [self.describe(name) for name in self.names()]
        n_weights = sum(math.prod(shape) for shape, _ in described)
        stored = [math.prod(shape) * ITEM_BYTES.get(type_name, 8) for shape, type_name in described]
        n_head = self.config.vocab_size * self.config.embed_width
        more = n_head * (WEIGHT_BYTES[head_dtype or dtype] - WEIGHT_BYTES[dtype])
        return math.ceil(n_weights * WEIGHT_BYTES[dtype] + more) + max(stored, default=0)

    def content_hash(self) -> str:
        """Hex SHA-256 of config and weights: small files whole, others by header and 16 MiB of samples.

        Two checkpoints that differ between the samples of a large file only are not told apart.
        """
        digest = hashlib.sha256()
        stable = {key: value for key, value in self.raw_config.items() if key not in VOLATILE_KEYS}
        digest.update(json.dumps(stable, sort_keys=True).encode())
        for path in self.paths:
            _hash_file(digest, path)
        return digest.hexdigest()


@final
@dataclass(frozen=True)
class DrawnTensor:
    """A tensor that `draw` makes, the same whenever it is called; nobody holds it in between."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    draw: Callable[[], Tensor]


@final
class DictSource:
    """A model in memory, or drawn when it is read, in the same way as a checkpoint."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor | DrawnTensor]) -> None:
        """Offer `tensors`, which are not copied."""
        self.config = config
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._tensors.keys()

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and type of a tensor."""
        tensor = self._tensors[name]
        return tuple(tensor.shape), DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`."""
        held = self._tensors[name]
        return held if isinstance(held, Tensor) else held.draw()


def read_config(directory: Path) -> ModelConfig:
    """Return the shape of the model in `directory` without looking at its weights."""
    config = parse_config(read_json(contained(directory, CONFIG)), str(directory / CONFIG))
    return _with_generation_ends(config, directory)


def check_finite(source: Checkpoint) -> None:
    """Raise ModelError when a weight is NaN or infinite, naming its tensor; reads every weight once."""
    for name in source.names():
        tensor = source.tensor(name)
        if tensor.dtype not in DTYPE_NAMES:
            continue
        n_odd = tensor.numel() - int(torch.isfinite(tensor).sum())
        if n_odd:
            raise ModelError(
                f"{name} has {n_odd} NaN or infinite weights, of {tensor.numel()}. Download it again."
            )


def find_directory(model: str | Path, *, offline: bool = False, wanted: tuple[str, ...] = WANTED) -> Path:
    """Return the directory of a model given by path, bundled name or hub id; a path that exists wins.

    `wanted` are the patterns of the files that are taken from the hub. Raises ModelError when there is no
    such model, UsageError for a name that is neither.
    """
    path = Path(model)
    try:
        if path.is_dir():
            return path
        is_there = path.exists()
    except (OSError, ValueError) as error:
        raise UsageError(f"{_shown(model)} is not a usable path ({brief(str(error))}).") from error
    if is_there and path.suffix == ".gguf":
        raise ModelError(f"{path} is GGUF, which Winnow does not read. Use the model's original safetensors.")
    if is_there:
        raise ModelError(
            f"{path} is a file, expected a model directory. Pass the directory that holds {CONFIG}."
        )
    if str(model) in BUNDLED:
        return bundled(str(model))
    if not isinstance(model, str) or not HUB_ID.fullmatch(model) or ".." in model:
        raise ModelError(
            f"{_shown(model)} is no directory here, no bundled model ({', '.join(BUNDLED)}) and no hub id "
            "(owner/name). Check the spelling."
        )
    return _from_hub(model, offline=offline, wanted=wanted)


def bundled(name: str) -> Path:
    """Return the directory of a model that ships with Winnow."""
    return Path(__file__).parent.parent / "zoo" / name


def _shown(model: str | Path) -> str:
    """Return a name as it was given; of one too long to be read, the whole parts of its end."""
    text = str(model)
    if len(text) <= LONGEST_SHOWN_PATH:
        return repr(text)
    end = text[-LONGEST_SHOWN_PATH:]
    if "/" not in end:
        return f"A name of {len(text)} characters"
    return f"The path that ends in {end[end.index('/') :]!r}"


def contained(directory: Path, name: str) -> Path:
    """Return the path of the file `name` of `directory`.

    Raises ModelError when a link leads out of the directory; the hub's cache, which links its snapshots
    to one store of blobs, counts as one directory.
    """
    root = directory.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    path = directory / name
    if not path.resolve().is_relative_to(root):
        raise ModelError(
            f"{path} leads out of the model directory, to {path.resolve()}. Copy the file into it."
        )
    return path


def _from_hub(model: str, *, offline: bool, wanted: tuple[str, ...]) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(model, allow_patterns=list(wanted), local_files_only=offline)
        )
    except Exception as error:  # the hub, its HTTP client and the file system each raise their own
        said = str(error).strip().splitlines() or [type(error).__name__]
        reason = said[0][:200].rstrip(". ")
        how = "is not in the local cache" if offline else "cannot be had from the hub"
        raise ModelError(
            f"{model} is no directory here and {how}: {reason}. Check the name, or pass a directory."
        ) from error


def _weight_files(directory: Path) -> tuple[Path, ...]:
    """Return the safetensors files of `directory`, or say why there are none."""
    if (directory / WEIGHTS).exists() or (directory / WEIGHTS).is_symlink():
        return (contained(directory, WEIGHTS),)
    if (directory / INDEX).exists():
        return tuple(
            contained(directory, name)
            for name in sorted(set(weight_map(directory, INDEX, ".safetensors").values()))
        )
    found = sorted(path.name for path in directory.iterdir())
    if PICKLED in found or PICKLED_INDEX in found:
        raise ModelError(
            f"{directory} holds pickled weights ({PICKLED}), which can run code when read. "
            f"Make safetensors of them, without running anything: winnow convert {directory} NEW-DIRECTORY"
        )
    if any(name.endswith((".bin", ".pt", ".pth")) for name in found):
        raise ModelError(
            f"{directory} holds pickled weights under another name than {PICKLED}. "
            "Look for the model in Hugging Face's layout, best as safetensors."
        )
    if any(name.endswith(".gguf") for name in found):
        raise ModelError(
            f"{directory} holds GGUF weights, a format of other engines with quantised blocks. "
            "Use the model's original safetensors."
        )
    raise ModelError(
        f"{directory} holds neither {WEIGHTS} nor {INDEX}. Download the weights; "
        f"a hub model that has {PICKLED} only: winnow convert OWNER/NAME NEW-DIRECTORY"
    )


def weight_map(directory: Path, index: str, suffix: str) -> dict[str, str]:
    """Return which file holds which tensor, from the index file called `index`.

    Raises ModelError unless every file is a plain name that ends in `suffix`, and for too many of them.
    """
    path = contained(directory, index)
    table = read_json(path, largest_bytes=LARGEST_INDEX_BYTES).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ModelError(f"{path}: weight_map is {brief(table)}, expected tensor names and their files.")
    for shard in table.values():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard) or not shard.endswith(suffix):
            raise ModelError(
                f"{path} names the file {brief(shard)}, expected a plain name ending in {suffix}."
            )
    n_shards = len(set(table.values()))
    if n_shards > MOST_SHARDS:
        raise ModelError(f"{path} names {n_shards} files, expected at most {MOST_SHARDS}.")
    return table


def _refuse_quantised(directory: Path, names: Iterable[str]) -> None:
    found = next((name for name in names if QUANTISED.search(name)), None)
    if found is not None:
        raise ModelError(
            f"{directory} holds {brief(found)}: its weights are quantised by another tool, Winnow reads "
            "plain floats. Use the unquantised checkpoint of this model."
        )


def _check_index(directory: Path, found: dict[str, str]) -> None:
    """Raise ModelError when the index, where it rules, and the shards' headers disagree."""
    if (directory / WEIGHTS).exists():
        return
    table = weight_map(directory, INDEX, ".safetensors")
    astray = sorted(name for name in table.keys() | found.keys() if table.get(name) != found.get(name))
    if astray:
        name = astray[0]
        raise ModelError(
            f"{directory / INDEX} places {brief(name)} in {table.get(name)}, the files hold it in "
            f"{found.get(name)}. Download index and shards together."
        )


@contextmanager
def openable(path: Path) -> Iterator[str]:
    """Yield a name under which compiled code can open `path`, even where the path's bytes are no UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        yield str(path)


def _open_safetensors(path: Path):
    try:
        with path.open("rb") as file:
            head = file.read(64)
        refuse_lfs_pointer(path, head)
        if head.startswith(GGUF_MARK):
            raise ModelError(f"{path} is GGUF under another name. Use the model's original safetensors.")
        with openable(path) as name:
            return safe_open(name, framework="pt", device="cpu")
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error}). Download it again.") from error
    except SafetensorError as error:
        raise ModelError(f"{path} is broken ({brief(str(error))}). Download it again.") from error


def _index_names(files: Mapping[Path, Any]) -> dict[str, Path]:
    """Return which file holds which tensor; no tensor may be in two."""
    file_of: dict[str, Path] = {}
    for path, file in files.items():
        for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
            if name in file_of:
                raise ModelError(
                    f"{brief(name)} is in both {file_of[name]} and {path.name}. Download them again."
                )
            file_of[name] = path
    return file_of


def _with_generation_ends(config: ModelConfig, directory: Path) -> ModelConfig:
    """Take the end tokens from generation_config.json, where chat models list more of them."""
    if not (directory / GENERATION).exists():
        return config
    path = contained(directory, GENERATION)
    ends = Fields(read_json(path), str(path)).token_ids("eos_token_id", config.vocab_size)
    return dataclasses.replace(config, eos_ids=ends or config.eos_ids)


def _hash_file(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        if size <= HASHED_WHOLE_BYTES:
            digest.update(file.read())
            return
        header_bytes = 8 + int.from_bytes(file.read(8), "little")
        file.seek(0)
        digest.update(file.read(header_bytes))
        for index in range(N_SAMPLES):
            file.seek(header_bytes + (size - header_bytes - SAMPLE_BYTES) * index // (N_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
