"""Assign: which of the pairs stand in one text.   (floor 5 · audit)

The input of the first layer's MLP at any position depends on all tokens of the text; it lies in the span of
the MLP's gradient where they are the right ones. Every pair is present with a weight, those of one position
adding up to 1, and attends to all pairs of the other positions by their weights:

    F(w) = sum over pairs of w_n |part of z_n(w) outside the span|^2 / |z_n(w)|^2

With weights of 0 and 1 this is the distance of a text, and 0 for the texts that were there. Texts mixed half
and half are near-minima of their own, so one pair is held and the rest fall to its text or to another one:
hence several starts. Exchanges of single tokens finish what the relaxation leaves.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.audit.encoders.pairs import Pairs
from winnow.audit.front import Front
from winnow.audit.leakage.spans import Span

STEPS = 60
STEP_SIZE = 0.5
SWEEPS = 8
FOUND_BEFORE = -2.0  # where the weight of a pair starts that another text explains
HELD = 50.0  # and that of the pair that is held
GAIN = 1e-9  # by which an exchange must lower F


@final
@dataclass(frozen=True)
class Board:
    """The pairs up to one length: what each brings to the first layer."""

    front: Front
    span: Span
    group: Int64[Tensor, " N"]
    x: Float[Tensor, "N D"]
    q: Float[Tensor, "N H E"]
    k: Float[Tensor, "N H E"]
    v: Float[Tensor, "N H E"]

    @classmethod
    def of(cls, front: Front, span: Span, pairs: Pairs) -> "Board":
        """Return the board of `pairs`."""
        x = front.embed(pairs.tokens, pairs.positions)
        z = front.attention_input(0, x)
        q = front.query(0, z, pairs.positions) / front.layout.head_width**0.5
        return cls(front, span, pairs.positions, x, q, front.key(0, z, pairs.positions), front.value(0, z))

    def of_length(self, n: int, closing: Int64[Tensor, " N"] | None) -> tuple["Board", Int64[Tensor, " _"]]:
        """Return the board of texts of `n` tokens that end in one of the pairs `closing`, and its pairs."""
        stays = self.group < n
        if closing is not None:
            stays = stays & (self.group < n - 1)
            stays[closing[self.group[closing] == n - 1]] = True
        kept = stays.nonzero().squeeze(1)
        parts = (each[kept] for each in (self.group, self.x, self.q, self.k, self.v))
        return Board(self.front, self.span, *parts), kept

    def inputs(self, texts: Int64[Tensor, "M T"]) -> Float[Tensor, "M T D"]:
        """Return the MLP's inputs of texts whose entries are pairs."""
        q, k, v = self.q[texts], self.k[texts], self.v[texts]
        weights = torch.einsum("mihe,mjhe->mhij", q, k).softmax(-1)
        mixed = torch.einsum("mhij,mjhe->mihe", weights, v).flatten(2)
        return self.front.mlp_input(0, self.front.after_attention(0, self.x[texts], mixed))

    def outside(self, rows: Float[Tensor, "*N D"]) -> Float[Tensor, "*N"]:
        """Return the share of each row's squared length outside the span."""
        lengths = rows.square().sum(-1)
        return 1 - (rows @ self.span.basis.to(rows)).square().sum(-1) / lengths

    def relaxed(self, start: Float[Tensor, " N"]) -> Int64[Tensor, " T"]:
        """Return the heaviest pair of each position behind gradient steps on F from the logits `start`."""
        scores = torch.einsum("ihe,jhe->hij", self.q, self.k)
        scores = (scores - scores.amax(-1, keepdim=True)).exp()
        alike = self.group[:, None] == self.group[None, :]
        own = torch.diag_embed(torch.diagonal(scores, dim1=1, dim2=2))
        values = self.v.transpose(0, 1)
        with torch.enable_grad():
            logits = start.clone().requires_grad_()
            optimiser = torch.optim.Adam([logits], lr=STEP_SIZE)
            for _ in range(STEPS):
                w = self.shares(logits)
                seen = torch.where(alike, own, scores * w)
                mixed = (seen / seen.sum(-1, keepdim=True)) @ values
                rows = self.front.after_attention(0, self.x, mixed.transpose(0, 1).flatten(1))
                distance = (w * self.outside(self.front.mlp_input(0, rows))).sum()
                (logits.grad,) = torch.autograd.grad(distance, [logits])
                optimiser.step()
        n_places = int(self.group.max()) + 1
        ends = torch.searchsorted(self.group, torch.arange(n_places + 1)).tolist()
        heavy = logits.detach()
        return torch.tensor([a + int(heavy[a:b].argmax()) for a, b in pairwise(ends)])

    def shares(self, logits: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Return the weights that `logits` give: a softmax over the pairs of each position."""
        n_places = int(self.group.max()) + 1
        top = torch.full((n_places,), -torch.inf).scatter_reduce(0, self.group, logits.detach(), "amax")
        raised = (logits - top[self.group]).exp()
        return raised / torch.zeros(n_places).index_add(0, self.group, raised)[self.group]

    def swept(self, text: Int64[Tensor, " T"], held: int) -> Int64[Tensor, " T"]:
        """Return `text` after exchanges of single tokens, as long as one lowers F; `held` stays."""
        best = float(self.outside(self.inputs(text[None])).sum())
        for _ in range(SWEEPS):
            before = best
            for place in range(len(text)):
                others = (self.group == place).nonzero().squeeze(1)
                if len(others) < 2 or int(text[place]) == held:
                    continue
                tried = text.repeat(len(others), 1)
                tried[:, place] = others
                distances = self.outside(self.inputs(tried)).sum(1)
                if float(distances.min()) < best - GAIN:
                    best, text = float(distances.min()), tried[int(distances.argmin())]
            if best == before:
                break
        return text

    def holds(self, text: Int64[Tensor, " T"], n_rows: int) -> bool:
        """Return whether all MLP inputs of `text` lie in the span, `n_rows` being tried in all."""
        return bool(self.span.holds(self.inputs(text[None])[0], n_rows).all())


def one_text(
    board: Board, held: int, explained: Int64[Tensor, " _"], n_rows: int
) -> Int64[Tensor, " T"] | None:
    """Return a text of pairs in which `held` stands and that the span holds; None where the start fails.

    `explained` are pairs that other texts account for: they start lighter. Costs `STEPS` products of all
    pairs by all pairs, ``N^2 D`` each.
    """
    start = torch.zeros(len(board.group))
    start[explained] = FOUND_BEFORE
    start[held] = HELD
    n_places = int(board.group.max()) + 1
    is_plain = len(board.group) == n_places  # one pair for each position
    text = torch.arange(n_places) if is_plain else board.swept(board.relaxed(start), held)
    return text if board.holds(text, n_rows) else None
