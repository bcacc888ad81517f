"""Kinds: the makers of attention by features.   (floor 4 · attention)

w(q, k), x = scale * q . k                      features R at head width E
linear("elu")       (elu(q) + 1) . (elu(k) + 1)     E
linear("degree-1")  1 + cos(q, k)                   E + 1
polynomial(g, b)    (b + x)^g                       C(E + g, g), without bias C(E + g - 1, g)
taylor(g)           1 + x + ... + x^g / g!          C(E + g, g)
poly_sketch(g, R)   about (b + x)^g                 R
"""

from typing import Literal

import torch

from winnow.attention.features import AngleFeatures, EluFeatures
from winnow.attention.fixed_state import FeatureAttention
from winnow.attention.series import check_bias, check_even, power_features, taylor_features
from winnow.attention.sketches import NonnegativeFeatures, ProductFeatures, TensorFeatures
from winnow.base.errors import UsageError
from winnow.base.rng import keyed

LINEAR = {"elu": EluFeatures, "degree-1": AngleFeatures}
SKETCHES = {
    "tensor": TensorFeatures,
    "product": ProductFeatures,
    "nonnegative": NonnegativeFeatures,
}


def linear(feature: Literal["elu", "degree-1"] = "elu") -> FeatureAttention:
    """Return attention linear in features of the key: no state is smaller, ``4 R (E_v + 1)`` bytes a kv head.

    No weight is negative. What it may lose: everything sharp. No key's weight can exceed another's by more
    than the ratio of their features, so one token in many is found only if its features stand out that much;
    see `separation_probe`. Raises UsageError for another feature.
    """
    if feature not in LINEAR:
        raise UsageError(f"feature is {feature!r}; expected one of {', '.join(LINEAR)}.")
    return FeatureAttention(LINEAR[feature]())


def polynomial(degree: int, bias: float = 1.0) -> FeatureAttention:
    """Return attention with the weight (bias + scale * q . k) ** degree, exactly.

    `degree` is even, so no weight is negative. A context of n tokens wants a degree that grows like log n:
    `min_poly_degree` says which. The state has C(E + degree, degree) features per kv head: beyond degree 2 or
    E = 32 take `poly_sketch`. Raises UsageError for odd degrees and a negative bias.
    """
    return FeatureAttention(power_features(degree, bias))


def taylor(degree: int) -> FeatureAttention:
    """Return attention with the first terms of exp(x) as weight, x = scale * q . k.

    Where all |x| <= X its weights differ from softmax attention's by a factor within 1 +- eps, eps = e^(2X)
    X^(g+1) / (g+1)!, and its outputs by at most 2 eps / (1 - eps) times the largest |v|. Void beyond: large
    scores get polynomial instead of exponential weight. `degree` is even, so no weight is negative. The
    state has C(E + degree, degree) features per kv head. Raises UsageError for odd degrees.
    """
    return FeatureAttention(taylor_features(degree))


def poly_sketch(
    degree: int,
    size: int,
    kind: Literal["tensor", "product", "nonnegative"] = "tensor",
    *,
    rng: torch.Generator | int,
    bias: float = 0.0,
) -> FeatureAttention:
    """Return attention whose weights estimate (bias + scale * q . k) ** degree with `size` features.

    Each weight's mean and variance over the seeds stand in `winnow.attention.sketches`: the error falls as 1
    / sqrt(size). "tensor" and "product" are unbiased, but single weights can be negative and an output is
    then no mean of values; "nonnegative" never is, and smears the attention. `rng` is a seed, or a stream
    from which one is drawn. Raises UsageError for odd degrees, and for a size of "nonnegative" that is no
    square.
    """
    check_even("poly_sketch", degree)
    check_bias(bias)
    if kind not in SKETCHES:
        raise UsageError(f"kind is {kind!r}; expected one of {', '.join(SKETCHES)}.")
    if size < 1:
        raise UsageError(f"size is {size}; expected at least 1 feature.")
    if kind == "nonnegative" and (root := round(size**0.5)) ** 2 != size:
        raise UsageError(f"size is {size}; nonnegative needs a square such as {max(root, 1) ** 2}.")
    seed = rng if isinstance(rng, int) else int(torch.randint(2**62, (), generator=rng, device=rng.device))
    keyed(seed, 0)  # refuses a seed out of range here rather than at the first key
    return FeatureAttention(SKETCHES[kind](degree, size, seed, float(bias)))
