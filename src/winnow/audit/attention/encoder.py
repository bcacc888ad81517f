"""Encoder: the tokens of a full first-layer map, each by itself, from two that are known.   (floor 5 · audit)

With the first and the last token known (their opening and closing marks) every other token i meets 3 H
equations, linear in its query or its key, and no search through prefixes is needed:

    log B_i,first - log B_i,last  = q_i . (k_first - k_last)
    log B_first,i - log B_first,first = q_first . (k_i - k_first),  and the same for the last

Sweeps then compare whole rows and columns with all other tokens as they stand. A map shows more of an encoder
than of a causal model: nothing there is hidden behind the first token.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.audit.attention.beam import EXPLAINS, Decoded
from winnow.audit.attention.causal import LONG_LIST, SHORT_LIST, is_coarse
from winnow.audit.attention.first_layer import Ask, FirstLayer
from winnow.audit.attention.rows import Shown
from winnow.base.errors import UsageError

SWEEPS = 3


def decode_encoder(layer: FirstLayer, shown: Shown, anchors: tuple[int, int]) -> Decoded:
    """Return the tokens whose first layer best explains the full maps `shown`.

    `anchors` are the first and the last token. Maps of a padded batch must be cut to their tokens first.
    Costs ``6 T V D H`` operations and per sweep the rows of T short lists. Raises UsageError for maps
    averaged over heads: two equations do not name one token among a vocabulary.
    """
    if shown.is_averaged:
        raise UsageError(
            "the maps are averaged over heads; expected maps per head of an encoder. Averaged ones leave 3 "
            "equations per token."
        )
    size = min(LONG_LIST if is_coarse(shown.precision) else SHORT_LIST, layer.n_tokens)
    ends = _Ends(layer, shown, anchors)
    lists = [ends.short_list(position, size) for position in range(1, shown.n - 1)]
    tokens = torch.tensor([anchors[0], *(int(each[0]) for each in lists), anchors[1]])
    queries, keys = _made(layer, tokens)
    errors, seconds, worsts = torch.zeros(shown.n), torch.full((shown.n,), torch.inf), torch.zeros(shown.n)
    for _ in range(SWEEPS):
        before = tokens.clone()
        for position, candidates in enumerate(lists, start=1):
            cost, worst = _explained(layer, shown, candidates, position, queries, keys)
            order = cost.topk(min(2, len(cost)), largest=False).indices
            best = candidates[order[0]]
            errors[position], worsts[position] = cost[order[0]], worst[order[0]]
            seconds[position] = cost[order[1]] if len(order) > 1 else torch.inf
            tokens[position] = best
            made = layer.make(best[None], position)
            queries[position], keys[position] = made.q[0], made.k[0]
        if bool((tokens == before).all()):
            break
    return Decoded(tokens, errors, seconds, worsts <= EXPLAINS)


class _Ends:
    """The equations that the first and the last token give for every token between them."""

    def __init__(self, layer: FirstLayer, shown: Shown, anchors: tuple[int, int]) -> None:
        self.layer, self.shown, self.last = layer, shown, shown.n - 1
        self.ends = [
            layer.make(torch.tensor([token]), position)
            for token, position in zip(anchors, (0, self.last), strict=True)
        ]
        self.heads = torch.arange(layer.n_heads)

    def short_list(self, position: int, size: int) -> Int64[Tensor, " N"]:
        """Return the `size` tokens that best meet the equations at `position`, best first."""
        first, last = self.ends
        maps, to, end = self.shown.maps, position, self.last
        asks = [
            Ask(self.heads, first.k[0] - last.k[0]),
            Ask(self.heads, first.q[0], of_keys=True),
            Ask(self.heads, last.q[0], of_keys=True),
        ]
        ratios = [
            self._ratio(maps[:, to, 0], maps[:, to, end]),
            self._ratio(maps[:, 0, to], maps[:, 0, 0]),
            self._ratio(maps[:, end, to], maps[:, end, end]),
        ]
        owns = [torch.zeros_like(ratios[0][0]), *((e.q[0] * e.k[0]).sum(-1) for e in self.ends)]
        wanted = torch.cat([target + own for (target, _), own in zip(ratios, owns, strict=True)])
        off = self.layer.scores(position, asks).sub_(wanted).div_(torch.cat([sigma for _, sigma in ratios]))
        return off.square_().sum(1).topk(size, largest=False).indices

    def _ratio(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithm of one / other and its uncertainty; what was rounded to 0 is a bit above."""
        precision = self.shown.precision
        floors = [shown.clamp_min(max(precision.absolute, 1e-30) / 2) for shown in (one, other)]
        parts = [(precision.slack(shown) / shown).square() for shown in floors]
        return floors[0].log() - floors[1].log(), (parts[0] + parts[1]).sqrt()


def _made(layer: FirstLayer, tokens: Tensor) -> tuple[Float[Tensor, "T H E"], Float[Tensor, "T H E"]]:
    made = [layer.make(token[None], position) for position, token in enumerate(tokens)]
    return torch.cat([each.q for each in made]), torch.cat([each.k for each in made])


def _explained(
    layer: FirstLayer, shown: Shown, candidates: Tensor, position: int, queries: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Return error and worst deviation, in slacks, of each candidate's row and column."""
    made = layer.make(candidates, position)
    own = (made.q * made.k).sum(-1)
    row = torch.einsum("nhe,the->nht", made.q, keys)
    row[:, :, position] = own
    row_error, row_worst = shown.compare(row.softmax(-1), shown.maps[:, position])
    scores = torch.einsum("the,she->hts", queries, keys)
    scores[:, :, position] = -torch.inf
    rest = scores.logsumexp(-1)
    column = torch.einsum("the,nhe->nht", queries, made.k)
    predicted = (column - torch.logaddexp(column, rest)).exp()
    is_other = torch.arange(shown.n) != position
    shown_column = shown.maps[:, :, position]
    column_error, column_worst = shown.compare(predicted[:, :, is_other], shown_column[:, is_other])
    return (0.5 * (row_error.square() + column_error.square())).sqrt(), torch.maximum(row_worst, column_worst)
