"""Rows: how well a token explains a shown row, exactly, and in equations linear in it.   (floor 5 · audit)

The row of a causal map at position i is the softmax of ``q_i . k_j`` over j <= i. A ratio of two of its
entries needs no normalisation and leaves one equation, linear in the query:

    log B_ij - log B_ir = q_i . (k_j - k_r)

Equations find a short list in the whole vocabulary; the exact row, self included, chooses from the list.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.audit.attention.exposure import Precision
from winnow.audit.attention.first_layer import FirstLayer

PER_HEAD = 4  # equations: more make the product dearer, fewer the short list less sure
LEAST_SHOWN = 3.0  # an entry below this many absolute errors has no logarithm worth its place


@final
@dataclass(frozen=True, eq=False)
class Equations:
    """Per equation ``query . (key of column - key of reference) = target +- sigma``, of one head each."""

    heads: Int64[Tensor, " M"]
    columns: Int64[Tensor, " M"]
    references: Int64[Tensor, " M"]
    targets: Float[Tensor, " M"]
    sigma: Float[Tensor, " M"]

    def vectors(self, keys: Float[Tensor, "T H E"]) -> Float[Tensor, "M E"]:
        """Return what each equation's query is multiplied with, for given `keys` of the tokens before."""
        return keys[self.columns, self.heads] - keys[self.references, self.heads]


@final
@dataclass(frozen=True, eq=False)
class Shown:
    """What is shown of one layer: maps per head, or one map averaged over them.

    `is_partial` says that only each row's largest entries are there, so that a row is compared on those alone
    and up to a common factor.
    """

    maps: Float[Tensor, "H_shown T T"]
    precision: Precision
    is_averaged: bool = False
    is_partial: bool = False

    @property
    def n(self) -> int:
        """Positions."""
        return self.maps.shape[-1]

    def compare(
        self, rows: Float[Tensor, "N H T_row"], shown: Float[Tensor, "H_shown T_row"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Return the root mean square and the largest of (row - shown) / slack, for each of N candidates."""
        made = rows.mean(1, keepdim=True) if self.is_averaged else rows
        slack = self.precision.slack(shown)
        if self.is_partial:
            is_there = shown > 0
            total = shown.sum(-1, keepdim=True)
            made = torch.where(is_there, made, 0.0)
            made = made * (total / made.sum(-1, keepdim=True).clamp_min(1e-30))
            slack = torch.where(is_there, slack + self.precision.relative * shown, torch.inf)
        off = ((made - shown) / slack).flatten(1)
        return off.square().mean(1).sqrt(), off.abs().amax(1)


def equations(row: Float[Tensor, "H T_before"], precision: Precision) -> Equations:
    """Return at most `PER_HEAD` equations of a row's entries before its own, the surest of each head.

    The largest entry of a head is its reference: the logarithm of a large entry is the least uncertain.
    """
    n_heads, n_before = row.shape
    ordered = row.topk(min(PER_HEAD + 1, n_before), dim=1)
    values, places = ordered.values, ordered.indices
    slack = precision.slack(values) / values.clamp_min(1e-30)
    is_sure = values > LEAST_SHOWN * precision.absolute
    keep = (is_sure[:, 1:] & is_sure[:, :1]).flatten()
    heads = torch.arange(n_heads)[:, None].expand_as(places[:, 1:]).flatten()[keep]
    logs = values.clamp_min(1e-30).log()
    sigma = (slack[:, 1:].square() + slack[:, :1].square()).sqrt()
    return Equations(
        heads,
        places[:, 1:].flatten()[keep],
        places[:, :1].expand_as(places[:, 1:]).flatten()[keep],
        (logs[:, 1:] - logs[:, :1]).flatten()[keep],
        sigma.flatten()[keep],
    )


def causal_rows(
    layer: FirstLayer, ids: Int64[Tensor, " N"], keys: Float[Tensor, "T_before H E"]
) -> Float[Tensor, "N H T_row"]:
    """Return the row that each of `ids` would have after tokens with `keys`."""
    made = layer.make(ids, len(keys))
    before = torch.einsum("nhe,the->nht", made.q, keys)
    own = (made.q * made.k).sum(-1, keepdim=True)
    return torch.cat([before, own], -1).softmax(-1)
