"""Encode: rows of coded bfloat16, made of weights; and whether read ones are sound.   (floor 1 · kernels)"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from winnow.kernels.pack.coded.reference import PLACES, TABLE, front_bytes

_NONE = 16  # no code


def to_coded(weight: Float[Tensor, "N D"]) -> UInt8[Tensor, "N row_bytes"] | None:
    """Return the rows, rounded to bfloat16 and coded, or None where one has more patches than room.

    Codes go to the high bytes that most weights of a row have, of equally many to the lower ones.
    """
    bits = weight.detach().to(torch.bfloat16).view(torch.int16).int() & 0xFFFF  # N, D
    high, table = (bits >> 8).long(), _table(bits >> 8)
    code_of = torch.full((len(bits), 256), _NONE, dtype=torch.uint8)
    for code in reversed(range(TABLE)):  # of equal entries, which are zeros at the end, the first counts
        code_of.scatter_(1, table[:, code : code + 1], code)
    codes = code_of.gather(1, high)
    patched = codes == _NONE
    words = torch.zeros(len(bits), (front_bytes(bits.shape[1]) - TABLE) // 4, dtype=torch.int32)
    words[:, 0] = patched.sum(1)
    if words.numel() and words[:, 0].max() >= words.shape[1]:
        return None
    for row in words[:, 0].nonzero().flatten().tolist():
        columns = patched[row].nonzero().flatten().int()
        words[row, 1 : 1 + len(columns)] = columns | bits[row, patched[row]] << 16
    order = PLACES.argsort()  # of 64 weights, the one whose byte is first, and so on
    own = (bits & 255).to(torch.uint8).unflatten(1, (-1, 2, 64))[..., order].flatten(2)
    first, second = codes.masked_fill(patched, 0).unflatten(1, (-1, 2, 64))[..., order].unbind(2)
    chunks = torch.cat([own, first | second << 4], 2).flatten(1)
    return torch.cat([words.flip(1).contiguous().view(torch.uint8), table.to(torch.uint8), chunks], 1)


def _table(high: Tensor) -> Tensor:
    """Return what the sixteen codes of each row stand for, ascending, then zeros."""
    counts = torch.zeros(len(high), 256, dtype=torch.int64)
    counts.scatter_add_(1, high.long(), torch.ones_like(high, dtype=torch.int64))
    ranks = counts * 256 + 255 - torch.arange(256)
    best = ranks.topk(TABLE).values
    kept = torch.where(best >= 256, 255 - best % 256, 256).sort().values
    return torch.where(kept < 256, kept, 0)


def is_sound(rows: UInt8[Tensor, "N row_bytes"], width: int) -> bool:
    """Return whether no row has more patches than room, and none beyond its last weight."""
    words = (
        rows[:, : front_bytes(width) - TABLE].contiguous().view(torch.int32).flip(1)
    )  # N, count and patches
    counts = words[:, :1]
    if ((counts < 0) | (counts >= words.shape[1])).any():
        return False
    is_there = torch.arange(words.shape[1] - 1) < counts
    return not (is_there & (words[:, 1:] & 0xFFFF >= width)).any()
