"""Candidates: tokens at positions whose inputs of the first layer lie in its span.   (floor 5 · audit)

An input of the first layer is ``z = norm(e + p)``, of a token's embedding and a position's. All V tokens at
all T positions are V * T rows; but norm is a scaling of something linear, so that lengths and projections are
sums of one term of the token, one of the position and one product of both:

    z = s g * C(e + p) + b,   s = (|C(e + p)|^2 / D + epsilon)^(-1/2),   C takes the mean away or nothing

That is one product of V by D with the R directions of the span instead of T of them.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from winnow.audit.front import Front, Norm
from winnow.audit.leakage.spans import Span

CHUNK = 4096


@final
@dataclass(frozen=True)
class _Terms:
    """What a set of summands (tokens or positions) brings to lengths and projections."""

    bare: Tensor  # C x
    scaled: Tensor  # g * C x
    along: Tensor  # its projections on the basis
    tilted: Tensor  # the same, weighted by the roots of the tilts
    on_bias: tuple[Tensor, Tensor, Tensor]  # products of scaled, along and tilted with those of the bias


@final
class Filter:
    """Tests (token, position) pairs against a span."""

    def __init__(self, front: Front, span: Span) -> None:
        """Prepare the norm between the embeddings and the first maps."""
        norm: Norm = front.first_norm
        self.front, self.span, self.epsilon, self.is_centred = front, span, norm.epsilon, norm.is_centred
        self.scale = norm.weight.double()
        bias = torch.zeros_like(self.scale) if norm.bias is None else norm.bias.double()
        self.basis, self.roots = span.basis, span.tilts.sqrt()
        self.bias = (bias, bias @ self.basis, (bias @ self.basis) * self.roots)

    def candidates(
        self, positions: Int64[Tensor, " T"], tokens: Int64[Tensor, " N"]
    ) -> list[Int64[Tensor, " _"]]:
        """Return for each of `positions` the `tokens` that may stand there.

        For rotary models the position changes nothing: all entries are the same. Costs N D R
        multiply-adds in float64.
        """
        rows = self.front.position_rows(positions)
        n_places = 1 if rows is None else len(positions)
        places = self._terms(torch.zeros(1, self.front.width) if rows is None else rows)
        found: list[list[Tensor]] = [[] for _ in range(n_places)]
        for chunk in tokens.split(CHUNK):
            embedded = self.front.parameters[self.front.layout.tokens][chunk]
            held = self._held(self._terms(embedded), places, len(tokens) * n_places)
            for place in range(n_places):
                found[place].append(chunk[held[:, place]])
        joined = [torch.cat(each) for each in found]
        return joined * len(positions) if rows is None else joined

    def _terms(self, x: Tensor) -> _Terms:
        bare = x.double()
        bare = bare - bare.mean(1, keepdim=True) if self.is_centred else bare
        scaled = bare * self.scale
        along = scaled @ self.basis
        tilted = along * self.roots
        on_bias = tuple(part @ bias for part, bias in zip((scaled, along, tilted), self.bias, strict=True))
        return _Terms(bare, scaled, along, tilted, on_bias)  # pyright: ignore

    def _held(self, tokens: _Terms, places: _Terms, n_rows: int) -> Tensor:
        """Return which pairs (N, T) the span accepts."""
        squared = _sums(tokens.bare, places.bare)
        s = (squared / self.front.width + self.epsilon).rsqrt()
        parts = []
        for number, (a, b) in enumerate(
            ((tokens.scaled, places.scaled), (tokens.along, places.along), (tokens.tilted, places.tilted))
        ):
            on_bias = tokens.on_bias[number][:, None] + places.on_bias[number][None, :]
            parts.append(s.square() * _sums(a, b) + 2 * s * on_bias + self.bias[number].square().sum())
        return self.span.accepts(parts[0], parts[1], parts[2], n_rows)


def _sums(a: Float64[Tensor, "N R"], b: Float64[Tensor, "T R"]) -> Float64[Tensor, "N T"]:
    """Return |a_n + b_t|^2."""
    return a.square().sum(1)[:, None] + 2 * a @ b.mT + b.square().sum(1)[None, :]
