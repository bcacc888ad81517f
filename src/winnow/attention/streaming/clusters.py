"""Clusters: tokens that are no longer held, as counts, means and covariances.   (floor 4 · attention)

Each cluster has a count, the means of its keys and values and the variance of each key coordinate; all share
one covariance of keys and one of keys with values, pooled within the clusters. Everything is kept as a mean
and joined by the update of pairwise variances, so that nothing stalls as counts grow. Which token goes where
is decided by the tokens alone: the nearest centre, after the worst fitting have founded clusters of their
own, each in the place of two that were close (least growth of squared error).

Rows are one per batch entry and key-value head; C is the number of clusters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

SPLITS = 4  # new clusters a block may found once all are in use
SLACK = 1 + 1e-5  # radii are bounds: they must survive rounding
Relabel = Callable[[Tensor, Tensor, Tensor], None]


@final
@dataclass
class Clusters:
    """Moments of what was absorbed; see the module."""

    count: Tensor  # [N, C] int64
    key: Tensor  # [N, C, E]
    value: Tensor  # [N, C, E_v]
    spread: Tensor  # [N, C, E]: variance of each coordinate
    key_anchor: Tensor  # [N, C, E]: a fixed point, and the farthest key's distance from it
    key_radius: Tensor  # [N, C]
    value_anchor: Tensor
    value_radius: Tensor
    pooled: Tensor  # [N, E, E]: covariance of keys within their clusters, a mean over all tokens
    cross: Tensor  # [N, E, E_v]

    @classmethod
    def empty(cls, n_rows: int, n: int, width: int, value_width: int, device: torch.device) -> "Clusters":
        """Return `n` clusters without tokens."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(n_rows, *shape, device=device)

        return cls(
            torch.zeros(n_rows, n, dtype=torch.int64, device=device),
            zeros(n, width),
            zeros(n, value_width),
            zeros(n, width),
            zeros(n, width),
            zeros(n),
            zeros(n, value_width),
            zeros(n),
            zeros(width, width),
            zeros(width, value_width),
        )

    def distances(self, keys: Tensor) -> Tensor:
        """Return the squared distance of each key [N, P, E] to each centre: [N, P, C], infinite if empty."""
        middle = keys.mean(1, keepdim=True)  # a common shift takes the large part of the norms away
        a, b = keys - middle, self.key - middle
        squared = a.square().sum(-1)[:, :, None] - 2 * a @ b.mT + b.square().sum(-1)[:, None]
        return squared.clamp(min=0).masked_fill((self.count == 0)[:, None], torch.inf)

    def absorb(self, keys: Tensor, values: Tensor, ok: Tensor, relabel: Relabel) -> Tensor:
        """Take in the real ones of [N, P] tokens; return the cluster of each.

        `relabel(where, old, new)` hears of each cluster whose tokens have moved into another.
        """
        labels = torch.full(ok.shape, -1, dtype=torch.int64, device=ok.device)
        left = ok.clone()
        near = self.distances(keys).amin(-1)
        n = self.count.shape[1]
        n_steps = min(keys.shape[1], n if bool((self.count == 0).any()) else SPLITS)
        for step in range(n_steps):
            gain, which = near.masked_fill(~left, -1.0).max(-1)
            is_free, free = (self.count == 0).max(-1)
            cost, (into, out) = self._closest_pair()
            does_merge = ~is_free & (cost < gain) & (step < SPLITS)
            does_seed = (gain > 0) & (is_free | does_merge)
            if not bool(does_seed.any()):
                break
            does_merge &= does_seed
            self._merge(does_merge, into, out)
            for moved in (lambda at, old, new: _relabelled(labels, at, old, new), relabel):
                moved(does_merge, out, into)
            slot = torch.where(is_free, free, out)
            self._found(does_seed, slot, keys, values, which)
            rows = torch.arange(len(slot), device=slot.device)[does_seed]
            labels[rows, which[rows]] = slot[rows]
            left[rows, which[rows]] = False
            founded = keys.gather(1, which[:, None, None].expand(-1, 1, keys.shape[2]))
            fresh = (keys - founded).square().sum(-1)
            near = torch.where(does_seed[:, None], torch.minimum(near, fresh), near)
        nearest = self.distances(keys).argmin(-1)
        labels = torch.where(left, nearest, labels)
        self._add(keys, values, left, labels)
        return labels

    def join(self, other: "Clusters", relabel: Relabel) -> Tensor:
        """Take in another set of clusters; return the new cluster of each of its own: [N, C].

        Exact for counts, means and the pooled covariances; closest pairs merge until all find room.
        """
        n_rows, n = self.count.shape
        n_mine, n_theirs = self.count.sum(-1), other.count.sum(-1)
        share = (n_theirs / (n_mine + n_theirs).clamp(min=1)).float()[:, None, None]
        pairs = zip(self._each(), other._each(), strict=True)
        pooled = self.pooled + share * (other.pooled - self.pooled)
        cross = self.cross + share * (other.cross - self.cross)
        both = Clusters(*[torch.cat([*pair], 1) for pair in pairs], pooled=pooled, cross=cross)
        place = torch.arange(2 * n, device=share.device).repeat(n_rows, 1)
        for _ in range(n):
            is_full = (both.count > 0).sum(-1) > n
            _, (into, out) = both._closest_pair()
            both._merge(is_full, into, out)
            _relabelled(place, is_full, out, into)
        order = (both.count == 0).to(torch.int8).argsort(dim=-1, stable=True)  # those in use come first
        rows = torch.arange(n_rows, device=share.device)[:, None]
        for mine, theirs in zip(self._each(), both._each(), strict=True):
            mine.copy_(theirs[rows, order[:, :n]])
        self.pooled.copy_(both.pooled)
        self.cross.copy_(both.cross)
        place = order.argsort(-1).gather(1, place)
        mine = place[:, :n].clone()
        for old in range(n):  # labels of 0..n-1 may pass through each other: mark, then set
            at = torch.ones(n_rows, dtype=torch.bool, device=share.device)
            relabel(at, torch.full_like(mine[:, old], old), mine[:, old] + n)
        for new in range(n):
            at = torch.ones(n_rows, dtype=torch.bool, device=share.device)
            relabel(at, torch.full_like(mine[:, 0], new + n), torch.full_like(mine[:, 0], new))
        return place[:, n:]

    def _each(self) -> list[Tensor]:
        """The tensors with an axis of clusters."""
        held = [self.count, self.key, self.value, self.spread]
        return [*held, self.key_anchor, self.key_radius, self.value_anchor, self.value_radius]

    def _closest_pair(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the least growth of squared error by a merge, and the pair: smaller index first."""
        n = self.count.float()
        squared = self.distances(self.key)  # [N, C, C]
        growth = squared * (n[:, :, None] * n[:, None]) / (n[:, :, None] + n[:, None]).clamp(min=1)
        barred = torch.ones_like(squared[0], dtype=torch.bool).tril() | (self.count == 0)[:, :, None]
        growth = growth.masked_fill(barred | squared.isinf(), torch.inf).flatten(1)
        cost, at = growth.min(-1)
        return cost, (at // n.shape[1], at % n.shape[1])

    def _merge(self, do: Tensor, into: Tensor, out: Tensor) -> None:
        """Where `do`, add cluster `out` [N] to `into` and leave it empty."""
        rows = torch.arange(len(do), device=do.device)[do]
        i, j = into[rows], out[rows]
        n_i, n_j = self.count[rows, i].float()[:, None], self.count[rows, j].float()[:, None]
        share = n_j / (n_i + n_j)
        weight = (n_i * share / self.count[rows].sum(-1, keepdim=True))[:, :, None]  # of the pooled mean
        step, lift = self.key[rows, j] - self.key[rows, i], self.value[rows, j] - self.value[rows, i]
        self.pooled[rows] += weight * step[:, :, None] * step[:, None]
        self.cross[rows] += weight * step[:, :, None] * lift[:, None]
        change = self.spread[rows, j] - self.spread[rows, i]
        self.spread[rows, i] += share * change + share * (1 - share) * step.square()
        self.key[rows, i] += share * step
        self.value[rows, i] += share * lift
        self.count[rows, i] += self.count[rows, j]
        balls = ((self.key_anchor, self.key_radius), (self.value_anchor, self.value_radius))
        for anchor, radius in balls:
            middle = anchor[rows, i] + share * (anchor[rows, j] - anchor[rows, i])
            far_i = radius[rows, i] + (anchor[rows, i] - middle).norm(dim=-1) * SLACK
            far_j = radius[rows, j] + (anchor[rows, j] - middle).norm(dim=-1) * SLACK
            anchor[rows, i], radius[rows, i] = middle, torch.maximum(far_i, far_j)
        for held in self._each():
            held[rows, j] = 0

    def _found(self, do: Tensor, slot: Tensor, keys: Tensor, values: Tensor, which: Tensor) -> None:
        """Where `do`, let token `which` [N] be the one token of the empty cluster `slot`."""
        rows = torch.arange(len(do), device=do.device)[do]
        i, at = slot[rows], which[rows]
        n_before = self.count[rows].sum(-1)[:, None, None].float()
        for mean in (self.pooled, self.cross):
            mean[rows] *= n_before / (n_before + 1)
        self.count[rows, i] = 1
        self.key[rows, i] = self.key_anchor[rows, i] = keys[rows, at]
        self.value[rows, i] = self.value_anchor[rows, i] = values[rows, at]

    def _add(self, keys: Tensor, values: Tensor, ok: Tensor, labels: Tensor) -> None:
        """Add the tokens that are `ok`, each to the cluster of its label, which is not empty."""
        clusters = torch.arange(self.count.shape[1], device=labels.device)
        member = ((labels[:, :, None] == clusters) & ok[:, :, None]).float()  # [N, P, C]
        n_new = member.sum(1)
        middle = (member.mT @ keys) / n_new.clamp(min=1)[:, :, None]
        level = (member.mT @ values) / n_new.clamp(min=1)[:, :, None]
        n_old = self.count.float()
        share = (n_new / (n_old + n_new).clamp(min=1))[:, :, None]
        weight = n_old[:, :, None] * share
        is_new = (n_new > 0)[:, :, None]
        step = torch.where(is_new, middle - self.key, 0)
        lift = torch.where(is_new, level - self.value, 0)
        apart = torch.where(ok[:, :, None], keys - member @ middle, 0)
        off = torch.where(ok[:, :, None], values - member @ level, 0)
        n_all = (n_old.sum(-1) + n_new.sum(-1)).clamp(min=1)[:, None, None]
        part = n_new.sum(-1)[:, None, None] / n_all
        self.pooled += (apart.mT @ apart + (weight * step).mT @ step) / n_all - part * self.pooled
        self.cross += (apart.mT @ off + (weight * step).mT @ lift) / n_all - part * self.cross
        inner = (member.mT @ apart.square()) / n_new.clamp(min=1)[:, :, None]
        self.spread += share * (inner - self.spread) + share * (1 - share) * step.square()
        self.key += share * step
        self.value += share * lift
        self.count += n_new.long()
        for x, anchor, radius in (
            (keys, self.key_anchor, self.key_radius),
            (values, self.value_anchor, self.value_radius),
        ):
            far = (x - member @ anchor).norm(dim=-1) * SLACK  # [N, P]
            radius.copy_(torch.maximum(radius, (member * far[:, :, None]).amax(1)))


def _relabelled(labels: Tensor, where: Tensor, old: Tensor, new: Tensor) -> None:
    """In each row that `where` names, let label `old` read `new`."""
    labels[:] = torch.where(where[:, None] & (labels == old[:, None]), new[:, None], labels)
