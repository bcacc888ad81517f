"""Prefix: the tokens behind the maps of any layer of a causal model.   (floor 5 · audit)

Row i of any layer is a function of the tokens up to i, and of the model. So the model itself runs every token
of the vocabulary after the beginning that is known so far, and the rows are compared: V single-token forwards
a position. The same serves any statistic of maps that depends on the beginning alone, averages included.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from winnow.audit.attention.beam import BEAM, EXPLAINS, Child, Decoded, Prefix, children, pruned, reading
from winnow.audit.attention.first_layer import FirstLayer
from winnow.audit.attention.rows import Shown
from winnow.base.errors import UsageError

CHUNK = 256  # tokens in one forward: their copies of the cache take 2 L T D floats each
MOST_PAIRS = 2**20  # of first and second token that are tried one by one


def decode_prefix(
    model: nn.Module, shown: Shown, layer: int, *, first: int | None = None, likeliest: int | None = None
) -> Decoded:
    """Return the tokens whose maps at `layer` best explain `shown`, of a causal transformers model.

    `likeliest` looks first at so many tokens that the model itself expects, and stops there when one of them
    explains the row; margins then count those alone. The model must compute attention eagerly. Costs V
    forwards of one token per position; without `first` V^2 for the first two, and UsageError where V^2 is
    above a million.
    """
    n_tokens = FirstLayer(model).n_tokens
    if first is None and n_tokens**2 > MOST_PAIRS:
        raise UsageError(
            f"{n_tokens} squared pairs of first tokens are too many to run; expected the first token. Name "
            "it with first (--first ID)."
        )
    starts = range(n_tokens) if first is None else (first,)
    prefixes = [Prefix((token,), torch.empty(0), (0.0,), (0.0,), (torch.inf,)) for token in starts]
    for position in range(1, shown.n):
        row = shown.maps[:, position, : position + 1]
        found: list[Child] = []
        for prefix in prefixes:
            found += _continued(model, shown, layer, prefix, row, likeliest)
        prefixes = [child.grown(torch.empty(0)) for child in pruned(found, BEAM)]
    return reading(prefixes)


def _continued(
    model: nn.Module, shown: Shown, layer: int, prefix: Prefix, row: Tensor, likeliest: int | None
) -> list[Child]:
    """Return the best continuations of `prefix`, the likeliest tokens looked at first."""
    begun = model(input_ids=torch.tensor([prefix.tokens]), use_cache=True)
    order = _order(begun, model)
    looked, errors, worsts = 0, torch.empty(0), torch.empty(0)
    for ids, rows in _rows(model, begun.past_key_values, order, layer, len(prefix.tokens)):
        error, worst = shown.compare(rows, row)
        errors, worsts = torch.cat([errors, error]), torch.cat([worsts, worst])
        looked += len(ids)
        if likeliest is not None and looked >= likeliest and float(worsts.min()) <= EXPLAINS:
            break
    return children(prefix, order[:looked], errors, worsts)


def _order(begun: Any, model: Any) -> Int64[Tensor, " V"]:
    """Return the vocabulary as the model expects it, or as it stands where the model has no head."""
    n_tokens = model.get_input_embeddings().num_embeddings
    logits = getattr(begun, "logits", None)
    if logits is None or logits.shape[-1] != n_tokens:
        return torch.arange(n_tokens)
    return logits[0, -1].argsort(descending=True)


def _rows(
    model: nn.Module, cache: Any, order: Tensor, layer: int, position: int
) -> Iterator[tuple[Int64[Tensor, " N"], Float[Tensor, "N H T_row"]]]:
    for ids in order.split(CHUNK):
        copied = copy.deepcopy(cache)
        copied.batch_repeat_interleave(len(ids))
        places = torch.full((len(ids), 1), position)
        made = model(
            input_ids=ids[:, None],
            position_ids=places,
            past_key_values=copied,
            use_cache=True,
            output_attentions=True,
        )
        yield ids, made.attentions[layer][:, :, 0]
