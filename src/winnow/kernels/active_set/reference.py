"""Active set, by its definition.   (floor 1 · kernels)"""

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from winnow.kernels.linear.reference import linear_reference


def active_set_reference(
    x: Float[Tensor, " D"],
    p1: Float[Tensor, "R D"],
    p2: Float[Tensor, "F R"],
    bias: Float[Tensor, " F"],
    cap: int = 0,
) -> Int32[Tensor, " A"]:
    """Return, ascending, the neurons whose score ``p2 @ (p1 @ x) + bias`` is above 0.

    A score that is not a number counts as +infinity, so that a broken input stays visible. With ``cap > 0``
    at most `cap` neurons are kept: those of the highest scores, of equal scores those of the lower index.
    """
    scores = linear_reference(linear_reference(x, p1, None), p2, bias)
    scores = scores.masked_fill(scores.isnan(), torch.inf)
    chosen = torch.nonzero(scores > 0).squeeze(1)
    if 0 < cap < len(chosen):
        best = torch.sort(scores[chosen], descending=True, stable=True).indices[:cap]
        chosen = chosen[best].sort().values
    return chosen.to(torch.int32)
