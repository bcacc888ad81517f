"""Pair: the first two tokens together, from row 1, which both of them make.   (floor 5 · audit)

Row 0 of a causal map is 1 whatever the first token is. Row 1 gives one equation per head in both tokens,

    q_1(v) . k_0(u) = q_1(v) . k_1(v) - log(B_11 / B_10)

over V^2 pairs: for each head a product of V x E by E x V, in blocks that stay near the processor. The surest
head goes first; the others are computed for the pairs that it leaves.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.audit.attention.first_layer import FirstLayer
from winnow.audit.attention.rows import LEAST_SHOWN, Shown
from winnow.base.errors import UsageError

BLOCK = 1024  # tokens a side
WITHIN = 2.0  # sigmas: the two roundings of a ratio add to at most 1.42, arithmetic to little
FEW = 2e-3  # share of the pairs of a block below which they are looked at one by one
MOST = 4096  # pairs that are kept until all heads have spoken


@final
@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of first and second token, best first: errors of row 1 in slacks, as `Shown.compare` counts."""

    tokens: Int64[Tensor, "N 2"]
    errors: Float[Tensor, " N"]
    worsts: Float[Tensor, " N"]


@final
@dataclass(frozen=True, eq=False)
class _Heads:
    """Per head, surest first: keys at 0, queries at 1, wanted product of each query; all in uncertainties."""

    keys: Float[Tensor, "H V E"]
    queries: Float[Tensor, "H V E"]
    wanted: Float[Tensor, "H V"]


def first_pairs(layer: FirstLayer, shown: Shown, most: int) -> Pairs:
    """Return the `most` pairs that best explain row 1.

    Takes ``2 V^2 E`` operations per head that must be computed whole: one of fine maps, a few of coarse ones,
    and ``8 V H E`` bytes. Raises UsageError where row 1 has no two entries to compare in any head, and for
    maps averaged over heads, of which one equation remains.
    """
    if shown.is_averaged:
        raise UsageError(
            "the maps are averaged over heads, and their row 1 fits many pairs of first tokens; expected the "
            "first token. Name it with first (--first ID)."
        )
    heads, own = _heads(layer, shown)
    costs, ones, others = torch.empty(0), *torch.empty(2, 0, dtype=torch.int64)
    for start in range(0, layer.n_tokens, BLOCK):
        for right in range(0, layer.n_tokens, BLOCK):
            cost, one, other = _block(heads, slice(start, start + BLOCK), slice(right, right + BLOCK))
            if len(cost):
                costs, order = torch.cat([costs, cost]).sort()
                costs = costs[:MOST]
                ones = torch.cat([ones, one + start])[order[:MOST]]
                others = torch.cat([others, other + right])[order[:MOST]]
    return _ranked(layer, shown, own, torch.stack([ones, others], 1), most)


def _heads(layer: FirstLayer, shown: Shown) -> tuple[_Heads, Float[Tensor, "V H"]]:
    """Return the equations of row 1, and every token's product with its own key there."""
    row = shown.maps[:, 1, :2]
    is_sure = (row > LEAST_SHOWN * shown.precision.absolute).all(1) & (row > 0).all(1)
    if not bool(is_sure.any()):
        raise UsageError(
            "row 1 of the maps shows no head in which the first two tokens can be compared; expected the "
            "first token. Name it with first (--first ID)."
        )
    keys, queries, own = [], [], []
    for ids in layer.chunks():
        keys.append(layer.make(ids, 0).k)
        made = layer.make(ids, 1)
        queries.append(made.q)
        own.append((made.q * made.k).sum(-1))
    products = torch.cat(own)
    sigma = (shown.precision.slack(row) / row).square().sum(1).sqrt()
    spread = products.std(0).clamp_min(1e-9)
    order = (sigma / spread).argsort()
    order = order[is_sure[order]]
    ratios = (row[:, 1] / row[:, 0]).log()
    all_keys, all_queries = torch.cat(keys), torch.cat(queries)
    return (
        _Heads(
            torch.stack([all_keys[:, h] / sigma[h] for h in order]),
            torch.stack([all_queries[:, h] for h in order]),
            torch.stack([(products[:, h] - ratios[h]) / sigma[h] for h in order]),
        ),
        products,
    )


def _block(heads: _Heads, left: slice, right: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return cost, first and second token, counted within the block, of the pairs that no head excludes."""
    n_heads, head = len(heads.keys), 0
    keep = torch.empty(0, dtype=torch.bool)
    while head < n_heads and (head == 0 or float(keep.float().mean()) > FEW):
        off = torch.addmm(
            heads.wanted[head, right], heads.keys[head, left], heads.queries[head, right].T, beta=-1
        )
        within = off.abs_() < WITHIN
        keep = within if head == 0 else keep & within
        head += 1
    one, other = keep.nonzero(as_tuple=True)
    cost = torch.zeros(len(one))
    for each in range(n_heads):
        products = (heads.keys[each, left][one] * heads.queries[each, right][other]).sum(1)
        off = products - heads.wanted[each, right][other]
        is_left = off.abs() < WITHIN + (each < head)  # computed once more, in another order
        cost, one, other = (cost + off.square())[is_left], one[is_left], other[is_left]
    return cost, one, other


def _ranked(layer: FirstLayer, shown: Shown, own: Tensor, pairs: Int64[Tensor, "N 2"], most: int) -> Pairs:
    """Rank by the exact row, of all heads."""
    if not len(pairs):
        raise UsageError(
            "no two tokens explain row 1 of the maps; expected maps of this model's first layer. Check the "
            "model and the layer, or name the first token with first (--first ID)."
        )
    rows = []
    for one, other in pairs.tolist():
        key = layer.make(torch.tensor([one]), 0).k[0]
        query = layer.make(torch.tensor([other]), 1).q[0]
        rows.append(torch.stack([(query * key).sum(-1), own[other]], -1).softmax(-1))
    errors, worsts = shown.compare(torch.stack(rows), shown.maps[:, 1, :2])
    order = errors.argsort()[:most]
    return Pairs(pairs[order], errors[order], worsts[order])
