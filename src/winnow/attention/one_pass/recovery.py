"""Recovery: the largest entries of a sketched matrix, with what they leave out.   (floor 4 · attention)

    certificate_c = median over the rows of |table_r - Phi_r y|      about |T_c - y_c|, within 1 +- O(1 /
    sqrt(width))

needs no access to T. Divided by the norm of the column it is the tail ratio: near 1 the k entries say
nothing about the column, and `recover` refuses. The entries found are chosen by their estimates, which makes
the certificate a few percent too small in narrow tables.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.attention.one_pass.count_sketch import CountSketch, DyadicSketch
from winnow.base.errors import UsageError

SCAN_POSITIONS = 16_384  # estimated at once


@final
@dataclass(frozen=True)
class Recovered:
    """The k entries of each column with the largest estimates, in descending order of size."""

    positions: Int64[Tensor, "k M"]
    values: Float[Tensor, "k M"]
    certificate: Float[Tensor, " M"]  # estimated norm of what is left out
    tail_ratio: Float[Tensor, " M"]  # certificate over the estimated norm of the column


def recover(sketch: CountSketch | DyadicSketch, k: int, *, tail_limit: float = 0.7) -> Recovered:
    """Return the k largest entries of each column of the matrix that was sketched.

    With the width 12 k / eps and 15 rows for up to 1e5 positions, the error |T_c - y_c| is at most 1.05
    times that of the best k entries in the tests' streams (k heavy entries over noise); with 4 k and 9 rows
    it is not. A CountSketch is scanned, O(n) operations and constant memory; a DyadicSketch is descended,
    O(k log n). Raises UsageError when some column's tail ratio exceeds `tail_limit`, 1 never does: such a
    column is dense, and k entries do not describe it.
    """
    finest = sketch.levels[0] if isinstance(sketch, DyadicSketch) else sketch
    if not 1 <= k <= finest.end:
        raise UsageError(f"k is {k}; expected 1 to {finest.end}, the positions seen.")
    if not 0 < tail_limit <= 1:
        raise UsageError(f"tail_limit is {tail_limit}; expected 0 < tail_limit <= 1.")
    positions, values = _descended(sketch, k) if isinstance(sketch, DyadicSketch) else _scanned(sketch, k)
    left, whole = finest.without(positions, values).norms(), finest.norms()
    ratio = torch.where(whole > 0, left / whole, 0.0)
    worst = int(ratio.argmax())
    if ratio[worst] > tail_limit and tail_limit < 1:
        raise UsageError(
            f"Column {worst} keeps {float(ratio[worst]):.2f} of its norm outside its {k} largest entries, "
            f"more than {tail_limit}: it is dense. Take a larger k, or sketch a difference that is sparse."
        )
    return Recovered(positions, values, left, ratio)


def _scanned(sketch: CountSketch, k: int) -> tuple[Tensor, Tensor]:
    """Keep the k best of each column while all positions pass."""
    device = sketch.table.device
    best = torch.empty(0, sketch.table.shape[2], device=device)
    at = torch.empty(0, sketch.table.shape[2], dtype=torch.int64, device=device)
    for start in range(0, sketch.end, SCAN_POSITIONS):
        positions = torch.arange(start, min(start + SCAN_POSITIONS, sketch.end), device=device)
        best = torch.cat([best, sketch.estimates(positions)])
        at = torch.cat([at, positions[:, None].expand(-1, best.shape[1])])
        order = best.abs().topk(min(k, len(best)), dim=0).indices
        best, at = best.gather(0, order), at.gather(0, order)
    return at, best


def _descended(sketch: DyadicSketch, k: int) -> tuple[Tensor, Tensor]:
    """Keep the k best of each column's candidates."""
    at = sketch.candidates(k)
    finest = sketch.levels[0]
    columns = [finest.estimates(column)[:, c] for c, column in enumerate(at.unbind(1))]
    found = torch.stack(columns, dim=1).masked_fill(at >= finest.end, 0)
    order = found.abs().topk(k, dim=0).indices
    return at.gather(0, order), found.gather(0, order)
