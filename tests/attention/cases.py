"""Cases: every kind, its definition, and inputs of awkward sizes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from winnow.attention import Kind, linear, poly_sketch, polynomial, softmax, taylor
from winnow.attention.fixed_state import FeatureAttention
from winnow.attention.reference import FEATURES, exponential, power, truncated


@dataclass(frozen=True)
class Case:
    """A kind and the definition of its weight; None where the weight is its own random features'."""

    kind: Kind
    weight: object = None
    scale: float | None = None  # of the definition; None is 1 / sqrt(E)

    def scale_at(self, width: int) -> float:
        return width**-0.5 if self.scale is None else self.scale

    def definition(self):
        if self.weight is not None:
            return self.weight
        assert isinstance(self.kind, FeatureAttention)
        features = self.kind.features
        return lambda q, k: features.queries(q) @ features.keys(k).mT


EXACT = {
    "softmax": Case(softmax(), exponential),
    "elu": Case(linear("elu"), FEATURES["elu"], 1.0),
    "degree-1": Case(linear("degree-1"), FEATURES["degree-1"]),
    "polynomial-2": Case(polynomial(2, 0.5), power(2, 0.5)),
    "polynomial-4": Case(polynomial(4), power(4, 1.0)),
    "polynomial-2-no-bias": Case(polynomial(2, 0.0), power(2, 0.0)),
    "taylor-2": Case(taylor(2), truncated(2)),
    "taylor-4": Case(taylor(4), truncated(4)),
}
SKETCHED = {
    "tensor": Case(poly_sketch(2, 61, "tensor", rng=3, bias=1.0)),
    "product": Case(poly_sketch(2, 63, "product", rng=3, bias=1.0)),
    "nonnegative": Case(poly_sketch(4, 64, "nonnegative", rng=3, bias=1.0)),
}
CASES = EXACT | SKETCHED


def operands(
    rng: torch.Generator,
    *,
    batch: int = 2,
    heads: tuple[int, int] = (4, 2),
    n_queries: int = 71,
    n_keys: int = 71,
    widths: tuple[int, int] = (5, 3),
    dtype: torch.dtype = torch.float32,
    spread: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v; no size is a multiple of a chunk, and values are no wider than keys."""
    n_heads, n_kv_heads = heads
    q = torch.randn(batch, n_heads, n_queries, widths[0], generator=rng) * spread
    k = torch.randn(batch, n_kv_heads, n_keys, widths[0], generator=rng) * spread
    v = torch.randn(batch, n_kv_heads, n_keys, widths[1], generator=rng)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def streamed(
    kind: Kind, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, step: int = 1
) -> Tensor:
    """Return the causal outputs of a state that is fed `step` positions and read at the last of them."""
    state = kind.start(k.shape[0], k.shape[1], k.shape[3], v.shape[3])
    outs = []
    for at in range(0, k.shape[2], step):
        part = slice(at, at + step)
        state.append(k[:, :, part], v[:, :, part], None if mask is None else mask[:, part])
        end = min(at + step, k.shape[2])
        outs.append(state.read(q[:, :, end - 1 : end]))
    return torch.cat(outs, dim=2)
