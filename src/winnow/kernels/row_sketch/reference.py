"""Row sketch, by its definition: signs from a counter, and the sums over rows.   (floor 1 · kernels)"""

import numpy as np
from jaxtyping import Float64, Int64, UInt64


def philox(seed: int, counters: UInt64[np.ndarray, "N 4"]) -> UInt64[np.ndarray, "N 4"]:
    """Return the 32-bit words of Philox4x32-10 with the key `seed`, one row per counter."""
    c, low = counters.T.copy(), np.uint64(0xFFFFFFFF)
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        k0, k1 = (np.uint64(key) for key in keys)
        c = np.stack([(b >> np.uint64(32)) ^ c[1] ^ k0, b & low, (a >> np.uint64(32)) ^ c[3] ^ k1, a & low])
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c.T


def sign_entries(
    seed: int, first: int, rows: int, nonzeros: int, height: int
) -> tuple[Int64[np.ndarray, "N nonzeros"], Float64[np.ndarray, "N nonzeros"]]:
    """Return where each row goes in each of `nonzeros` equal parts of the sketch, and its signs."""
    part, draws = height // nonzeros, -(-nonzeros // 4)
    at, draw = np.divmod(np.arange(rows * draws, dtype=np.uint64), np.uint64(draws))
    at = at + np.uint64(first)
    counters = np.stack([at & np.uint64(0xFFFFFFFF), at >> np.uint64(32), draw, 0 * draw], axis=1)
    words = philox(seed, counters).reshape(rows, 4 * draws)[:, :nonzeros]
    places = ((words >> np.uint64(1)) * np.uint64(part) >> np.uint64(31)).astype(np.int64)
    return places + part * np.arange(nonzeros), 1.0 - 2.0 * (words & np.uint64(1))


def sketch_rows_reference(
    a: Float64[np.ndarray, "N D"], first: int, seed: int, nonzeros: int, height: int
) -> Float64[np.ndarray, "height D"]:
    """Return ``signs @ a``, unscaled: every column of `signs` has `nonzeros` entries of +1 or -1."""
    places, signs = sign_entries(seed, first, len(a), nonzeros, height)
    out = np.zeros((height, a.shape[1]))
    np.add.at(out, places, signs[:, :, None] * a[:, None])
    return out
