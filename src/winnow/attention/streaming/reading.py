"""Reading: what queries see of a state, in one softmax.   (floor 4 · attention)

Exact tokens and clusters meet in the log domain: a cluster is one key whose logit is the log of its tokens'
summed weights (its second cumulant) and whose value is their mean, tilted along the pooled covariance. The
definition is reference.py.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from winnow.attention.streaming.clusters import Clusters
from winnow.attention.streaming.held import Kept, Window

TINY = 1e-30


@final
@dataclass(frozen=True)
class Queries:
    """Queries of a piece, already scaled; Q is heads of the group times tokens, tokens fastest."""

    now: Tensor  # [N, Q, E]: as the window's keys see them
    back: Tensor  # [N, Q, E]: turned back to where the old keys stand
    sees: Tensor  # [N, T, F]: which tokens of the window a query may see
    n_tokens: int


@final
@dataclass(frozen=True)
class ClusterView:
    """How the clusters look to the queries."""

    log_n: Tensor  # [N, 1, C], -inf where empty
    level: Tensor  # [N, Q, C]: the mean's logit
    rise: Tensor  # [N, Q, C]: what the cumulant adds
    tilt: Tensor  # [N, Q, C]: how far the value follows the pooled covariance
    along: Tensor  # [N, Q, E_v]: the pooled covariance along the query

    @property
    def logits(self) -> Tensor:
        """The log of each cluster's summed weight."""
        return self.log_n + self.level + self.rise


def view_of(clusters: Clusters, back: Tensor) -> ClusterView:
    """Return what reference.py says of each cluster, for queries [N, Q, E]; a cap of s2 is the ball's."""
    squared = back.square()
    axes = (squared * clusters.pooled.diagonal(dim1=-2, dim2=-1)[:, None]).sum(-1, keepdim=True)
    whole = ((back @ clusters.pooled) * back).sum(-1, keepdim=True).clamp(min=0)
    share = squared @ clusters.spread.mT / axes.clamp(min=TINY)  # [N, Q, C]
    off_centre = (clusters.key - clusters.key_anchor).norm(dim=-1)
    reach = back.norm(dim=-1, keepdim=True) * (clusters.key_radius + off_centre)[:, None]
    variance = torch.minimum(share * whole, reach.square())
    log_n = clusters.count.float().log()[:, None]
    limit = log_n.clamp(min=0)
    frozen = (2 * variance * limit).sqrt()
    is_frozen = variance > 2 * limit
    rise = torch.where(is_frozen, frozen - limit, variance / 2)
    tilt = share * torch.where(is_frozen, frozen / variance.clamp(min=TINY), 1.0)
    return ClusterView(log_n, back @ clusters.key.mT, rise, tilt, back @ clusters.cross)


@final
@dataclass(frozen=True)
class Reading:
    """The weights of one read and what they make."""

    out: Tensor  # [N, Q, E_v]
    lse: Tensor  # [N, Q]: log of the summed weights, clusters as modelled
    exact_mass: Tensor  # [N, Q]: share of the exact tokens
    exact_sum: Tensor  # [N, Q, E_v]: their part of the output
    view: ClusterView
    window_share: Tensor  # [N, Q, F]: each window token's share among the window's


def read(queries: Queries, kept: Kept, window: Window, clusters: Clusters, remainder: str) -> Reading:
    """Read a state; a query that sees nothing gets zeros. Costs O(Q (A + F + C) E) products per row."""
    n_rows, n_queries, _ = queries.now.shape
    n_old, n_new = kept.key.shape[1], queries.sees.shape[-1]
    view = view_of(clusters, queries.back)
    old = (queries.back @ kept.key.mT).masked_fill(~kept.is_real[:, None], -torch.inf)
    new = queries.now @ window.key[:, :n_new].mT
    by_head = new.view(n_rows, -1, queries.n_tokens, n_new)
    new = by_head.masked_fill(~queries.sees[:, None], -torch.inf).view(n_rows, n_queries, n_new)
    rest = view.logits if remainder != "off" else torch.full_like(view.level, -torch.inf)
    logits = torch.cat([old, new, rest], -1)
    lse = logits.logsumexp(-1)
    weights = (logits - lse.masked_fill(lse.isinf(), 0)[..., None]).exp()
    w_old, w_new, w_rest = weights.split([n_old, n_new, rest.shape[-1]], -1)
    exact = w_old @ kept.value + w_new @ window.value[:, :n_new]
    out = exact
    if remainder == "on":
        follow = (w_rest * view.tilt).sum(-1, keepdim=True)
        out = exact + w_rest @ clusters.value + follow * view.along
    in_window = w_new.sum(-1, keepdim=True)
    return Reading(
        out, lse, w_old.sum(-1) + in_window[..., 0], exact, view, w_new / in_window.clamp(min=TINY)
    )
