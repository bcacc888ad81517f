"""Rows of coded bfloat16, by their definition.   (floor 1 · kernels)"""

import torch
from jaxtyping import BFloat16, UInt8
from torch import Tensor

CHUNK = 128  # weights whose bytes stand together: 128 low bytes, then 64 of codes
TABLE = 16  # bytes before the chunks: by code, a high byte; before it the count of patches, and these
PLACES = torch.arange(64).view(4, 2, 8).transpose(0, 1).flatten()  # where among 64 bytes that of a weight is


def can_code(width: int) -> bool:
    """Return whether rows of `width` weights can be coded, and take less memory then."""
    return width % CHUNK == 0 and 2 * CHUNK <= width <= 16384


def front_bytes(width: int) -> int:
    """Return what stands before a row's chunks: a line of memory for each 2048 weights."""
    return -(-width // 2048) * 64


def coded_row_bytes(width: int) -> int:
    """Return what a row takes in all."""
    return front_bytes(width) + width // CHUNK * 192


def from_coded(rows: UInt8[Tensor, "N row_bytes"], width: int) -> BFloat16[Tensor, "N D"]:
    """Return the weights that coded rows stand for."""
    front, chunks = rows.int().split([front_bytes(width), width // CHUNK * 192], 1)
    thirds = chunks.unflatten(1, (-1, 3, 64))[..., PLACES]  # N, chunks, thirds, 64
    codes = torch.stack([thirds[:, :, 2] & 15, thirds[:, :, 2] >> 4], 2).flatten(1).long()
    bits = front[:, -TABLE:].gather(1, codes) << 8 | thirds[:, :, :2].flatten(1)
    words = rows[:, : front.shape[1] - TABLE].contiguous().view(torch.int32).flip(1)
    for row in words[:, 0].nonzero().flatten().tolist():
        patches = words[row, 1 : 1 + int(words[row, 0])]
        bits[row, patches.long() & 0xFFFF] = patches >> 16
    return bits.to(torch.int16).view(torch.bfloat16)
