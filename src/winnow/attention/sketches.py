"""Sketches: random features for a power of the inner product.   (floor 4 · attention)

    w(q, k) estimates x^p,   x = bias + scale * q . k,   the bias as one coordinate more

With N = |q|^2 |k|^2 of the vectors so lengthened, D features, and every weight an average over the seeds:

    product       mean x^p; variance ((N + 2 x^2)^p - x^2p) / D: Gaussian projections, multiplied
    tensor        mean x^p; variance <= (2 + 3^p) / D * N^p, see `tensor_variance`: hashed, convolved
    nonnegative   never negative, biased upward: mean x^p + the product's variance for p / 2 and sqrt(D)

For p = 4 the bias could be taken back exactly, by states of degree 2; tried at 1,024 features, where the true
weights are near 1, single seeds left weights down to -1.3 and means of 0.06 to 3.6, useless for attention,
and is not offered.

Cost per vector: product and nonnegative ``p D E``, tensor ``p (E + D log D)`` operations. The maps are drawn
from the seed and the width alone, so that equal seeds give equal bits. The nonnegative one is after
arXiv:2310.01655 (abstract), construction ours.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from winnow.base.rng import keyed


@dataclass(frozen=True)
class _Drawn:
    """What all sketches share: a power, a number of features, a seed, a bias."""

    degree: int
    size: int
    seed: int
    bias: float = 0.0

    def default_scale(self, width: int) -> float:
        """That of softmax attention."""
        return 1 / math.sqrt(width)

    def n_features(self, width: int) -> int:
        """As many as asked for, whatever the width."""
        return self.size

    def lengthened(self, x: Float[Tensor, "*N E"]) -> Float[Tensor, "*N columns"]:
        """Return `x` with the root of the bias as one coordinate more, where there is a bias."""
        return pad(x, (0, 1), value=math.sqrt(self.bias)) if self.bias else x

    def _label(self, name: str) -> str:
        return (
            f"poly_sketch({name}, degree={self.degree}, size={self.size}, seed={self.seed}, bias={self.bias})"
        )


@final
class ProductFeatures(_Drawn):
    """Products of `degree` Gaussian projections, over sqrt(size)."""

    is_convex = False

    @property
    def label(self) -> str:
        """Kind, sizes and seed."""
        return self._label("product")

    def keys(self, k: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return the projections of k, multiplied."""
        x = self.lengthened(k)
        maps = _gaussian(self.degree, self.size, self.seed, x.shape[-1])
        maps = torch.from_numpy(maps).to(x.device, x.dtype)
        product = x @ maps[0]
        for each in maps[1:]:
            product = product * (x @ each)
        return product / math.sqrt(self.size)

    def queries(self, q: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return the projections of q, multiplied."""
        return self.keys(q)

    def weights(self, q: Float[Tensor, "*N T E"], k: Float[Tensor, "*M T_keys E"]) -> Tensor:
        """Return the products of the features."""
        return self.queries(q) @ self.keys(k).mT


@final
class TensorFeatures(_Drawn):
    """CountSketches of the vector, one per factor, convolved: a CountSketch of its tensor power."""

    is_convex = False

    @property
    def label(self) -> str:
        """Kind, sizes and seed."""
        return self._label("tensor")

    def keys(self, k: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return the convolution of the CountSketches of k."""
        x = self.lengthened(k)
        maps = torch.from_numpy(_hashed(self.degree, self.size, self.seed, x.shape[-1])).to(x.device, x.dtype)
        spectrum = torch.fft.rfft(x @ maps[0])
        for each in maps[1:]:
            spectrum = spectrum * torch.fft.rfft(x @ each)
        return torch.fft.irfft(spectrum, n=self.size)

    def queries(self, q: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return the convolution of the CountSketches of q."""
        return self.keys(q)

    def weights(self, q: Float[Tensor, "*N T E"], k: Float[Tensor, "*M T_keys E"]) -> Tensor:
        """Return the products of the features."""
        return self.queries(q) @ self.keys(k).mT


@final
class NonnegativeFeatures(_Drawn):
    """The product sketch of half the degree, times itself: each weight is a square."""

    is_convex = True

    @property
    def label(self) -> str:
        """Kind, sizes and seed."""
        return self._label("nonnegative")

    @property
    def root(self) -> ProductFeatures:
        """The sketch that is squared."""
        return ProductFeatures(self.degree // 2, math.isqrt(self.size), self.seed, self.bias)

    def keys(self, k: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return all products of two features of the root."""
        half = self.root.keys(k)
        return (half[..., :, None] * half[..., None, :]).flatten(-2)

    def queries(self, q: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return all products of two features of the root."""
        return self.keys(q)

    def weights(self, q: Float[Tensor, "*N T E"], k: Float[Tensor, "*M T_keys E"]) -> Tensor:
        """Return the squares of the root's weights."""
        return self.root.weights(q, k) ** 2


def product_variance(product: Tensor, norms: Tensor, degree: int, size: int) -> Tensor:
    """Return the variance of the product sketch where x is `product` and N is `norms`."""
    return ((norms + 2 * product**2) ** degree - product ** (2 * degree)) / size


def tensor_variance(
    q: Float[Tensor, "*N E"], k: Float[Tensor, "*N E"], degree: int, size: int
) -> Float[Tensor, "*N"]:
    """Return the variance of the tensor sketch of (q . k) ** degree, exactly.

    Pairs of coordinates that meet in a bucket agree in one of three ways per factor: trivially (A), as (i, j)
    with (i, j) (B), or as (i, j) with (j, i) (C). Where B and C both occur two independent sums must vanish,
    which for an even size is twice as likely as for an odd one.
    """
    once, square = (q * k).sum(-1) ** 2, (q * q * k * k).sum(-1)
    straight = (q * q).sum(-1) * (k * k).sum(-1) - square
    crossed = once - square
    terms = [
        (once + extra) ** degree for extra in (straight + crossed, straight, crossed, torch.zeros_like(once))
    ]
    both, only_straight, only_crossed, neither = terms
    twice = (1 if size % 2 else 2) / size**2
    mixed = both - only_straight - only_crossed + neither
    return (only_straight + only_crossed - 2 * neither) / size + twice * mixed


@lru_cache(maxsize=64)
def _gaussian(degree: int, size: int, seed: int, width: int) -> Float[np.ndarray, "degree E R"]:
    """Return the projections that belong to a seed and a width, in float64; an array: see `_monomials`."""
    return keyed(seed, width).standard_normal((degree, width, size))


@lru_cache(maxsize=64)
def _hashed(degree: int, size: int, seed: int, width: int) -> Float[np.ndarray, "degree E R"]:
    """Return CountSketches as matrices: in each row one sign, in a bucket drawn for it."""
    rng = keyed(seed, width)
    maps = np.zeros((degree, width, size))
    buckets = rng.integers(0, size, (degree, width, 1))
    np.put_along_axis(maps, buckets, rng.choice([-1.0, 1.0], (degree, width, 1)), axis=2)
    return maps
