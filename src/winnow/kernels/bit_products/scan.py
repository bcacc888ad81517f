"""Scan: columns as planes, and room for all that is found.   (floor 1 · kernels)"""

import numpy as np
from jaxtyping import Int64, UInt64

from winnow.kernels.cpu import Cpu
from winnow.kernels.operands import BitScan

FIRST_ROOM = 1 << 16


def bit_planes(words: UInt64[np.ndarray, "N words"]) -> UInt64[np.ndarray, "words stride"]:
    """Return the words with the vectors along the last axis, padded by zeros to a multiple of 8."""
    planes = np.zeros((words.shape[1], -(-len(words) // 8) * 8), np.uint64)
    planes[:, : len(words)] = words.T
    return planes


def found_by(scan: BitScan, cpu: Cpu, room: int = FIRST_ROOM) -> tuple[Int64[np.ndarray, "found 3"], int]:
    """Return what a scan finds, ascending by row and column, and its survivors.

    Where more is found than there is `room` for, the scan runs once more with enough.
    """
    while True:
        out = np.empty((3, room), np.int32)
        n_found, survivors = cpu.bit_products(scan, out)
        if n_found <= room:
            found = out[:, :n_found].T.astype(np.int64)
            return found[np.lexsort((found[:, 1], found[:, 0]))], survivors
        room = n_found
