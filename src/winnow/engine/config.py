"""Config: what a model is, read from config.json through one gate.   (floor 5 · engine)"""

import json
import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from winnow.base.errors import ModelError
from winnow.kernels import Activation

LARGEST_WIDTH = 2**20
LARGEST_COUNT = 2**24
LARGEST_JSON_BYTES = 4 * 2**20
LFS_MARK = b"version https://git-lfs.github.com/spec/"

_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxlong = 200


@final
@dataclass(frozen=True)
class Rope:
    """Rotary positions: how fast each pair of a head's coordinates turns with the position.

    `kind` is default, linear, llama3 or yarn; `scale` multiplies cosine and sine (1 but for yarn).
    `low` and `high` are llama3's frequency factors, or yarn's beta_slow and beta_fast.
    """

    kind: str
    theta: float
    factor: float = 1.0
    low: float = 1.0
    high: float = 1.0
    original_positions: int = 0
    scale: float = 1.0
    truncate: bool = True


@final
@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, in the letters of the house; every number has passed the gate."""

    family: str
    n_layers: int
    width: int  # D
    n_heads: int  # H
    n_kv_heads: int  # K
    head_width: int  # E
    n_neurons: int  # F
    vocab_size: int  # V
    n_positions: int
    activation: Activation
    norm_eps: float
    windows: tuple[int | None, ...]  # per layer: how many keys, its own included, a query may see
    rope: Rope | None = None
    embed_width: int = 0  # W: differs from D in OPT-350m only
    is_gated: bool = False
    is_pre_norm: bool = True
    has_final_norm: bool = True
    has_norm_weights: bool = True
    has_qk_norm: bool = False
    has_qkv_bias: bool = False
    has_out_bias: bool = False
    has_mlp_bias: bool = False
    is_tied: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    @property
    def sliding_window(self) -> int | None:
        """The narrowest window of any layer, or None when every layer sees all keys."""
        return min((window for window in self.windows if window is not None), default=None)

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Rows of the query, key and value parts of the fused matrix."""
        kv_rows = self.n_kv_heads * self.head_width
        return self.n_heads * self.head_width, kv_rows, kv_rows


@final
class Fields:
    """The keys of one JSON object, each read through a check; null counts as absent.

    Every method raises ModelError naming the key, the value received and what is expected.
    """

    def __init__(self, raw: dict[str, Any], where: str = "config.json") -> None:
        """Read from `raw`; `where` names it in messages."""
        self.raw = raw
        self.where = where

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self.raw.get(key) is not None

    def whole(self, key: str, default: int | None = None, *, low: int = 1, high: int = LARGEST_WIDTH) -> int:
        """An integer in low..high."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.unfit(key, value, f"a whole number from {low} to {high}")
        return value

    def real(self, key: str, default: float | None = None, *, low: float = 0.0, high: float = 1e12) -> float:
        """A finite number in low..high."""
        value = self._value(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not low <= value <= high:
            raise self.unfit(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.unfit(key, value, "true or false")
        return value

    def choice(self, key: str, default: str | None, allowed: tuple[str, ...]) -> str:
        """One of `allowed`."""
        value = self._value(key, default)
        if value not in allowed:
            raise self.unfit(key, value, f"one of {', '.join(allowed)}")
        return value

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """Token ids below `vocab_size`, written as null, one number or a list."""
        value = self.raw.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for each in ids:
            if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < vocab_size:
                raise self.unfit(key, each, f"token ids from 0 to {vocab_size - 1}")
        return tuple(ids)

    def unfit(self, key: str, value: object, expected: str) -> ModelError:
        """Return the error that says `value` was received for `key` where `expected` was expected."""
        return ModelError(f"{self.where}: {key} is {brief(value)}, expected {expected}. Mend {self.where}.")

    def _value(self, key: str, default: object) -> Any:
        value = self.raw.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelError(
                f"{self.where}: {key} is missing. Is this the config of a causal language model?"
            )
        return value


def brief(value: object, limit: int = 60) -> str:
    """One line of at most `limit` characters that shows a value found in a file or a name that was given.

    Costs the line, not the value: a text of gigabytes and a list without end are looked at where they begin.
    """
    text = repr(value[: limit + 1]) if isinstance(value, str) else _SHORT.repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def read_json(path: Path, *, largest_bytes: int = LARGEST_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object in the file at `path`.

    Raises ModelError when the file is missing, too large, not UTF-8, no object, holds a key twice or a
    number that JSON does not know (NaN), is nested beyond Python's stack, or is a Git-LFS pointer.
    """
    try:
        if path.stat().st_size > largest_bytes:
            raise ModelError(f"{path} has {path.stat().st_size} bytes, expected at most {largest_bytes}.")
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}). Check the model directory.") from error
    refuse_lfs_pointer(path, content)
    try:
        value = json.loads(content.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {brief(str(error))}. Download it again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {brief(value)}, expected a JSON object. Download it again.")
    return value


def refuse_lfs_pointer(path: Path, content: bytes) -> None:
    """Raise ModelError when `content`, the first bytes of `path`, is a Git-LFS pointer."""
    if content.startswith(LFS_MARK):
        raise ModelError(f"{path} is a Git-LFS pointer, not the file itself. Run: git lfs pull")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("an object holds the same key twice")
    return table


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
