"""Series: exact features of a polynomial of the inner product.   (floor 4 · attention)

    w(q, k) = a_0 + a_1 x + ... + a_g x^g,   x = scale * q . k,   a_j >= 0

The features are all monomials u^alpha of degree |alpha| <= g, each times sqrt(a_j * j! / alpha!), so the
inner product is w itself: ``C(E + g, g)`` of them when all coefficients are positive. Two series are of use:

    Taylor        a_j = 1 / j!                     the start of exp(x); relative error at most
                                                   e^(2X) X^(g+1) / (g+1)! where |x| <= X
    (bias + x)^g  a_j = C(g, j) bias^(g - j)       its own weight; with bias = 1 and scale / g close to exp(x)

An even g is never negative: the power as a square, the Taylor start because all its extrema are positive.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from winnow.base.errors import UsageError


@final
@dataclass(frozen=True)
class SeriesFeatures:
    """The monomials of a series with coefficients that are not negative."""

    label: str
    coefficients: tuple[float, ...]
    is_convex: bool = True  # an even degree; see `check_even`

    def n_features(self, width: int) -> int:
        """C(E + j - 1, j) for each degree j whose coefficient is not zero."""
        return sum(math.comb(width + j - 1, j) for j, a in enumerate(self.coefficients) if a)

    def default_scale(self, width: int) -> float:
        """That of softmax attention."""
        return 1 / math.sqrt(width)

    def keys(self, k: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return the weighted monomials of k."""
        blocks, block, width = [], k.new_ones((*k.shape[:-1], 1)), k.shape[-1]
        for degree, coefficient in enumerate(self.coefficients):
            if degree:
                at, of, _ = _monomials(width, degree)
                parents, coordinates = (torch.from_numpy(x).to(k.device) for x in (at, of))
                block = block[..., parents] * k[..., coordinates]
            if coefficient:
                counts = torch.from_numpy(_monomials(width, degree)[2]).to(k.device, k.dtype)
                blocks.append(block * (coefficient * counts).sqrt())
        return torch.cat(blocks, dim=-1)

    def queries(self, q: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return the weighted monomials of q."""
        return self.keys(q)

    def weights(self, q: Float[Tensor, "*N T E"], k: Float[Tensor, "*M T_keys E"]) -> Tensor:
        """Return the series of the scores, by Horner's rule: no feature is made."""
        x = q @ k.mT
        total = torch.full_like(x, self.coefficients[-1])
        for coefficient in self.coefficients[-2::-1]:
            total = total * x + coefficient
        return total


def taylor_features(degree: int) -> SeriesFeatures:
    """Return the features of the first terms of exp(x), up to an even `degree`."""
    check_even("taylor", degree)
    return SeriesFeatures(f"taylor({degree})", tuple(1 / math.factorial(j) for j in range(degree + 1)))


def power_features(degree: int, bias: float | int) -> SeriesFeatures:
    """Return the features of (bias + x) ** degree for an even `degree` and a bias of 0 or more."""
    check_even("polynomial", degree)
    check_bias(bias)
    terms = tuple(float(math.comb(degree, j) * bias ** (degree - j)) for j in range(degree + 1))
    return SeriesFeatures(f"polynomial({degree}, {float(bias)})", terms)


def check_even(name: str, degree: int) -> None:
    """Raise UsageError unless `degree` is even and at least 2: an odd power makes negative weights."""
    if degree < 2 or degree % 2:
        raise UsageError(
            f"{name} received degree {degree}; expected 2, 4, 6 ...: odd degrees give negative weights. "
            "For degree 1 take linear('degree-1'), whose feature is never negative."
        )


def check_bias(bias: float | int) -> None:
    """Raise UsageError unless `bias` is finite and not negative."""
    if not (math.isfinite(bias) and bias >= 0):
        raise UsageError(f"bias is {bias}; expected a finite number, 0 or more.")


@lru_cache(maxsize=32)
def _monomials(width: int, degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each monomial its parent, one degree below, its first coordinate, and j! / alpha!.

    Arrays rather than tensors: a tensor that was first made in inference mode would bar later gradients.

    Monomials stand in the order of their first, smallest coordinate, so those without the coordinates below c
    are the end of the list: a monomial is c times any of them.
    """
    if degree == 0:
        return np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1)
    smallest = np.full(1, width)  # of the empty monomial: beyond every coordinate
    repeats, counts, parents = np.zeros(1, np.int64), np.ones(1), np.zeros(1, np.int64)
    for level in range(1, degree + 1):
        starts = np.searchsorted(smallest, np.arange(width)) if level > 1 else np.zeros(width, np.int64)
        parents = np.concatenate([np.arange(start, len(smallest)) for start in starts])
        first = np.repeat(np.arange(width), len(smallest) - starts)
        repeats = np.where(smallest[parents] == first, repeats[parents] + 1, 1)
        counts, smallest = counts[parents] * level / repeats, first
    return parents, smallest, counts
