"""Causal: the tokens of a causal model's first layer, one row after the other.   (floor 5 · audit)

Row 0 is 1 whatever the first token is, so the first two are found together, from row 1. Every later row
depends on one unknown token: equations choose a short list from the vocabulary, the exact row chooses from
the list. A beam of prefixes survives as long as rows leave a doubt.

After arXiv:2310.12462 (abstract), construction ours.
"""

import torch
from jaxtyping import Int64
from torch import Tensor

from winnow.audit.attention.beam import BEAM, Decoded, Prefix, children, pruned, reading
from winnow.audit.attention.exposure import Precision
from winnow.audit.attention.first_layer import CHUNK, Ask, FirstLayer
from winnow.audit.attention.pair import first_pairs
from winnow.audit.attention.rows import Shown, causal_rows, equations

SHORT_LIST, LONG_LIST = 256, 1024  # candidates whose rows are computed: of fine maps, of coarse ones
COARSE = 1e-3  # relative or absolute


def decode_causal(layer: FirstLayer, shown: Shown, *, first: int | None = None, beam: int = BEAM) -> Decoded:
    """Return the tokens whose first layer best explains `shown`.

    `first` is the first token where it is known, a beginning mark say. Costs for T tokens about
    ``2 T V D (PER_HEAD H + E)`` operations, and ``V^2 2 E`` once for the first two; maps averaged over heads
    have no equations, and every row is computed for the whole vocabulary.
    """
    if shown.n == 1:
        token = torch.tensor([-1 if first is None else first])
        return Decoded(token, torch.zeros(1), torch.zeros(1), torch.tensor([True]))
    starts = range(layer.n_tokens) if first is None else (first,)
    prefixes = _begin(layer, shown, starts, beam)
    for position in range(len(prefixes[0].tokens), shown.n):
        prefixes = _extend(layer, shown, prefixes, position, beam)
    return reading(prefixes)


def _begin(layer: FirstLayer, shown: Shown, starts: range | tuple[int, ...], beam: int) -> list[Prefix]:
    if len(starts) == 1:
        token = int(starts[0])
        keys = layer.make(torch.tensor([token]), 0).k
        return [Prefix((token,), keys, (0.0,), (0.0,), (torch.inf,))]
    pairs = first_pairs(layer, shown, beam)
    found = []
    for place, (one, other) in enumerate(pairs.tokens.tolist()):
        keys = torch.cat([layer.make(torch.tensor([one]), 0).k, layer.make(torch.tensor([other]), 1).k])
        error, worst = float(pairs.errors[place]), float(pairs.worsts[place])
        rest = torch.cat([pairs.errors[:place], pairs.errors[place + 1 :]])
        second = float(rest.min()) if len(rest) else torch.inf
        found.append(Prefix((one, other), keys, (0.0, error), (0.0, worst), (second, second)))
    return found


def _extend(
    layer: FirstLayer, shown: Shown, prefixes: list[Prefix], position: int, beam: int
) -> list[Prefix]:
    row = shown.maps[:, position, : position + 1]
    found = []
    for prefix, candidates in zip(prefixes, _short_lists(layer, shown, prefixes, position), strict=True):
        found += children(prefix, candidates, *_errors(layer, shown, candidates, prefix.state, row))
    kept = pruned(found, beam)
    keys = layer.make(torch.tensor([child.token for child in kept]), position).k
    return [child.grown(key[None]) for child, key in zip(kept, keys, strict=True)]


def _short_lists(
    layer: FirstLayer, shown: Shown, prefixes: list[Prefix], position: int
) -> list[Int64[Tensor, " N"]]:
    """Return for each prefix the tokens that the equations of its row leave, or the whole vocabulary."""
    everything = [torch.arange(layer.n_tokens)] * len(prefixes)
    if shown.is_averaged:
        return everything
    asked = equations(shown.maps[:, position, :position], shown.precision)
    if len(asked.heads) < max(2, layer.n_heads // 2):
        return everything
    vectors = torch.cat([asked.vectors(prefix.state) for prefix in prefixes])
    products = layer.scores(position, [Ask(asked.heads.repeat(len(prefixes)), vectors)])
    off = products.unflatten(1, (len(prefixes), -1)).sub_(asked.targets).div_(asked.sigma)
    size = min(LONG_LIST if is_coarse(shown.precision) else SHORT_LIST, layer.n_tokens)
    costs = off.square_().sum(-1)
    return [costs[:, place].topk(size, largest=False).indices for place in range(len(prefixes))]


def _errors(
    layer: FirstLayer, shown: Shown, candidates: Tensor, keys: Tensor, row: Tensor
) -> tuple[Tensor, Tensor]:
    parts = [shown.compare(causal_rows(layer, ids, keys), row) for ids in candidates.split(CHUNK)]
    return torch.cat([errors for errors, _ in parts]), torch.cat([worsts for _, worsts in parts])


def is_coarse(precision: Precision) -> bool:
    """Whether a row leaves so much open that more candidates must be looked at exactly."""
    return max(precision.relative, precision.absolute) > COARSE
