"""Bit products, by their definition.   (floor 1 · kernels)"""

import numpy as np
from jaxtyping import Bool, Int8, Int32, Int64, UInt64


def pack_signs_reference(signs: Bool[np.ndarray, "N width"]) -> UInt64[np.ndarray, "N words"]:
    """Return bit t of a row in word t // 64 at place t % 64, the bits past the width 0."""
    padded = np.zeros((len(signs), -(-signs.shape[1] // 64) * 64), bool)
    padded[:, : signs.shape[1]] = signs
    return np.packbits(padded, axis=1, bitorder="little").view("<u8")


def unpack_signs_reference(words: UInt64[np.ndarray, "N words"], width: int) -> Int8[np.ndarray, "N width"]:
    """Return +1 for a bit that is set and -1 for one that is not."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, count=width, bitorder="little")
    return (2 * bits.astype(np.int8) - 1).astype(np.int8)


def bit_distances_reference(
    a: UInt64[np.ndarray, "N words"], b: UInt64[np.ndarray, "N words"]
) -> Int32[np.ndarray, " N"]:
    """Return in how many bits each row of `a` differs from that of `b`: (width - product) / 2."""
    return np.bitwise_count(a ^ b).sum(axis=1, dtype=np.int32)


def bit_products_reference(
    rows: UInt64[np.ndarray, "N words"], columns: UInt64[np.ndarray, "M words"], limit: int
) -> Int64[np.ndarray, "found 3"]:
    """Return (row, column, distance) of every pair with at most `limit` differing bits, ascending."""
    distances = np.stack(
        [bit_distances_reference(np.broadcast_to(row, columns.shape), columns) for row in rows]
    )
    i, j = np.nonzero(distances <= limit)
    return np.stack([i, j, distances[i, j]], axis=1)
