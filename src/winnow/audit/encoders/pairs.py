"""Pairs: which token may stand where in an encoder's texts.   (floor 5 · audit)

Three things say so. The rows of the token embedding that have a gradient are the tokens. The span of the
first maps' inputs holds the pairs, and others that sums of pairs make up. And the norm behind the
embeddings, which sees nothing of its input's length, turns every gradient at right angles to that input:

    <d_vp, C(e_v + p_p)> = 0       d_vp: the gradient where token v stands at p;  C takes the mean away

A token that stands in one place has d_vp as its whole row, and one product per position says which place that
is. Taken away from the position's row, it may leave one token there, which is found likewise, and so on. This
counts no dimensions: it also holds where the spans are full.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from winnow.audit.front import Front
from winnow.audit.leakage.attack import position_rows, token_rows
from winnow.audit.leakage.candidates import Filter
from winnow.audit.leakage.spans import FALSE_POSITIVES, Span

ROUNDING = 20.0  # times the largest product with a row of ones, which ought to be 0
GONE = 1e-5  # of a row's length: nothing is left of it
MOST_CHANCE = 100 * FALSE_POSITIVES  # expected wrong hits up to which a product of 0 says something


@final
@dataclass(frozen=True)
class Pairs:
    """Entry n: `tokens[n]` may stand at `positions[n]`, ascending; `is_sure[n]` where it does."""

    tokens: Int64[Tensor, " N"]
    positions: Int64[Tensor, " N"]
    is_sure: Bool[Tensor, " N"]

    @property
    def n_positions(self) -> int:
        """Up to the last position at which anything may stand."""
        return int(self.positions.max()) + 1 if len(self.positions) else 0

    def at(self, position: int) -> Int64[Tensor, " _"]:
        """Return the entries at `position`."""
        return (self.positions == position).nonzero().squeeze(1)


def find_pairs(front: Front, span: Span, gradients: Mapping[str, Tensor], longest: int) -> Pairs:
    """Return the pairs that may stand in the texts, up to the first position where none may.

    A full span leaves all tokens at all positions to the orthogonality. Costs V T products of the rank, and
    of the used tokens by the positions per round of taking away. Never finds padding: its row is kept zero.
    """
    used, n_positions = token_rows(front, gradients), position_rows(front, gradients)
    tokens = torch.arange(front.n_tokens) if used is None else used
    places = torch.arange(n_positions or min(longest, front.n_positions or longest))
    if span.is_saturated:
        listed = [tokens if used is not None and n_positions else tokens[:0]] * len(places)
    else:
        listed = Filter(front, span).candidates(places, tokens)
    ends = [place for place, each in enumerate(listed) if not len(each)]
    listed = listed[: ends[0]] if ends else listed
    may = torch.stack([torch.isin(tokens, each) for each in listed], 1) if listed else None
    if may is None or not bool(may.any()):
        return Pairs(tokens[:0], tokens[:0], torch.zeros(0, dtype=torch.bool))
    sure = torch.zeros_like(may)
    if used is not None and n_positions and not ends:
        may, sure = _peeled(front, tokens, may, gradients)
    place, which = may.mT.nonzero(as_tuple=True)
    return Pairs(tokens[which], place, sure[which, place])


def _peeled(
    front: Front, tokens: Tensor, may: Bool[Tensor, "N T"], gradients: Mapping[str, Tensor]
) -> tuple[Bool[Tensor, "N T"], Bool[Tensor, "N T"]]:
    """Return what remains possible and what is sure, from the rows of both embeddings."""
    assert front.layout.positions is not None
    places = torch.arange(may.shape[1]) + front.layout.position_offset
    rows = _Rows.of(front, tokens, may.shape[1])
    of_token = gradients[front.layout.tokens][tokens].double()
    of_place = gradients[front.layout.positions][places].double()
    both = torch.cat([of_token, of_place])
    off = both.sum(1).abs() / both.norm(dim=1) / both.shape[1] ** 0.5
    edge = ROUNDING * float(off.max())
    if may.numel() * edge * math.sqrt(2 * both.shape[1] / math.pi) > MOST_CHANCE:
        return may, torch.zeros_like(may)
    sizes = of_token.norm(dim=1), of_place.norm(dim=1)
    sure, n_sure = torch.zeros_like(may), -1
    while int(sure.sum()) > n_sure:
        n_sure = int(sure.sum())
        open_pairs = _open(may & ~sure, of_token, of_place, sizes)
        hits = open_pairs & (rows.on_tokens(of_token) <= edge * of_token.norm(dim=1)[:, None])
        for token in (hits.sum(1) == 1).nonzero().squeeze(1).tolist():
            place = int(hits[token].nonzero())
            of_place[place] -= of_token[token]
            of_token[token] = 0.0
            sure[token, place] = True
        open_pairs = _open(may & ~sure, of_token, of_place, sizes)
        hits = open_pairs & (rows.on_places(of_place) <= edge * of_place.norm(dim=1)[None, :])
        for place in (hits.sum(0) == 1).nonzero().squeeze(1).tolist():
            token = int(hits[:, place].nonzero())
            of_token[token] -= of_place[place]
            of_place[place] = 0.0
            sure[token, place] = True
    return sure | _open(may & ~sure, of_token, of_place, sizes), sure


def _open(may: Tensor, of_token: Tensor, of_place: Tensor, sizes: tuple[Tensor, Tensor]) -> Tensor:
    """Return the pairs whose token and whose position have something left."""
    left = [each.norm(dim=1) > GONE * size for each, size in zip((of_token, of_place), sizes, strict=True)]
    return may & left[0][:, None] & left[1][None, :]


@final
@dataclass(frozen=True)
class _Rows:
    """Centred embeddings of tokens and positions, and the lengths of their sums."""

    tokens: Float64[Tensor, "N D"]
    places: Float64[Tensor, "T D"]
    lengths: Float64[Tensor, "N T"]

    @classmethod
    def of(cls, front: Front, tokens: Tensor, n_positions: int) -> "_Rows":
        e = front.parameters[front.layout.tokens][tokens].double()
        p = front.position_rows(torch.arange(n_positions))
        assert p is not None
        e, p = e - e.mean(1, keepdim=True), p.double() - p.double().mean(1, keepdim=True)
        squared = e.square().sum(1)[:, None] + 2 * e @ p.mT + p.square().sum(1)[None, :]
        return cls(e, p, squared.clamp(min=1e-300).sqrt())

    def on_tokens(self, rows: Float64[Tensor, "N D"]) -> Float64[Tensor, "N T"]:
        """Return the size of each token's row along its sum with each position."""
        along = (rows * self.tokens).sum(1)[:, None] + rows @ self.places.mT
        return along.abs() / self.lengths

    def on_places(self, rows: Float64[Tensor, "T D"]) -> Float64[Tensor, "N T"]:
        """Return the size of each position's row along its sum with each token."""
        along = (rows * self.places).sum(1)[None, :] + self.tokens @ rows.mT
        return along.abs() / self.lengths
