"""Signs: +-1 vectors as bits, read from what the caller has.   (floor 3 · search)"""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from jaxtyping import UInt64

from winnow.base.errors import UsageError
from winnow.kernels import Cpu
from winnow.kernels.bit_products.reference import pack_signs_reference, unpack_signs_reference
from winnow.kernels.bit_products.scan import bit_planes

TILE_BYTES = 64 << 20  # of the caller's array at a time: it may be a file
MOST_ROWS = 2**30  # of one set; the kernels' indices are of 32 bits


@final
@dataclass(frozen=True)
class Signs:
    """Rows of +-1 as words, 1 for +1; the bits past the width are 0."""

    words: UInt64[np.ndarray, "N words"]
    width: int

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.words)

    @cached_property
    def planes(self) -> UInt64[np.ndarray, "words stride"]:
        """The words with the rows along the last axis; made once, as large as the words."""
        return bit_planes(self.words)

    def rows(self, start: int, end: int) -> np.ndarray:
        """Return some rows as int8."""
        return unpack_signs_reference(self.words[start:end], self.width)

    def joined(self, others: "Signs") -> "Signs":
        """Return the rows of both."""
        return Signs(np.concatenate([self.words, others.words]), self.width)


def check_matrix(name: str, array: np.ndarray) -> None:
    """Refuse what is no matrix with at least one row and one column."""
    if array.ndim != 2 or min(array.shape) < 1:
        raise UsageError(
            f"{name} has shape {array.shape}, expected [rows, width] of at least 1 each: one vector per row."
        )
    if len(array) > MOST_ROWS:
        raise UsageError(f"{name} has {len(array)} rows, expected at most {MOST_ROWS}: search it in parts.")


def is_signs(array: np.ndarray) -> bool:
    """Return whether the dtype is one of +-1 vectors: bool, signed integers, uint64 words of bits."""
    return array.dtype == bool or array.dtype.kind == "i" or array.dtype == np.uint64


def read_signs(name: str, array: np.ndarray, width: int, cpu: Cpu) -> Signs:
    """Return an array of +-1 as bits; `width` is 0, or how many bits of packed uint64 words count.

    bool is +1 for True; integers must be +-1; in uint64 words bit t % 64 of word t // 64 is coordinate t.
    The array is read once, in tiles; words that are contiguous are used where they lie.
    """
    check_matrix(name, array)
    if array.dtype == np.uint64:
        return _packed(name, array, width)
    if width not in (0, array.shape[1]):
        raise UsageError(f"width is {width}, {name} has {array.shape[1]} columns: leave width out.")
    n_rows, width = array.shape
    words = np.empty((n_rows, -(-width // 64)), np.uint64)
    step = max(TILE_BYTES // (width * array.itemsize), 1)
    for start in range(0, n_rows, step):
        tile, out = array[start : start + step], words[start : start + step]
        if array.dtype == bool:
            out[:] = pack_signs_reference(np.asarray(tile))
            continue
        narrow = np.ascontiguousarray(tile, dtype=np.int8)  # 257 wraps to 1: what was wide is compared
        is_same = tile.dtype == np.int8 or np.array_equal(narrow, tile)
        if not (cpu.pack_signs(narrow, out) and is_same):
            wrong = np.asarray(tile)[(tile != 1) & (tile != -1)][0]
            raise UsageError(
                f"{name} holds {wrong}, expected +1 and -1 only: pass floats for vectors of other values."
            )
    return Signs(words, width)


def _packed(name: str, words: np.ndarray, width: int) -> Signs:
    most = 64 * words.shape[1]
    width = width or most
    if not most - 63 <= width <= most:
        raise UsageError(
            f"width is {width}, {name} has {words.shape[1]} words: expected {most - 63}..{most}."
        )
    words = np.ascontiguousarray(words)
    if width < most and (words[:, -1] >> np.uint64(width % 64)).any():
        raise UsageError(f"{name} has bits set past width {width}, expected 0 there: clear them.")
    return Signs(words, width)
