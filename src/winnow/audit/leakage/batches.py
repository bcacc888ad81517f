"""Batches: the gradient that a batch of texts makes, as a client would send it.   (floor 5 · audit)

Texts of different lengths are padded behind their ends; padding has no label and, in a causal model, no
effect. The loss is transformers' own: the mean over all tokens that have a predecessor.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from winnow.base.errors import UsageError

SUMMED_ROWS = 512
IGNORED = -100  # the label of what has none, in torch and transformers

Texts = Sequence[Sequence[int]]


def padded(texts: Texts, filler: int) -> Int64[Tensor, "B T"]:
    """Return `texts` as one tensor, filled up with `filler` behind their ends."""
    rows = torch.full((len(texts), max(map(len, texts))), filler)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = torch.tensor(list(text))
    return rows


def check_texts(texts: Texts, n_tokens: int) -> None:
    """Raise UsageError for no texts, for one without anything to predict, and for ids outside the model."""
    if not texts:
        raise UsageError("the batch is empty; expected at least one text of two tokens.")
    shortest = min(map(len, texts))
    if shortest < 2:
        raise UsageError(f"a text has {shortest} tokens; expected at least 2: one to read, one to predict.")
    largest = max(max(text) for text in texts)
    smallest = min(min(text) for text in texts)
    if not 0 <= smallest <= largest < n_tokens:
        raise UsageError(f"token ids run from {smallest} to {largest}; the model knows 0 to {n_tokens - 1}.")


def loss_of(model: nn.Module, texts: Texts) -> Tensor:
    """Return the mean loss of `texts`, with its graph."""
    ids, labels = padded(texts, 0), padded(texts, IGNORED)
    return model(input_ids=ids, labels=labels).loss


def gradients_of(model: nn.Module, texts: Texts) -> dict[str, Tensor]:
    """Return the gradient of every trainable parameter of `model` on `texts`; leaves its `.grad` alone.

    Runs the model in the mode it is in: with dropout, torch's global generator is drawn from.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        found = torch.autograd.grad(loss_of(model, texts), list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def stacked(gradients: Mapping[str, Tensor], maps: Sequence) -> Tensor | None:
    """Return the gradients of `maps` that read one input side by side (D, M); None where one is missing."""
    if any(place.weight not in gradients for place in maps):
        return None
    return torch.cat([place.matrix(gradients) for place in maps], 1)


def error_of(made: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> float:
    """Return |made - observed| / |observed| over what was made."""
    off = sum(_squared(made[name] - observed[name]) for name in made)
    whole = sum(_squared(observed[name]) for name in made)
    return (off / whole) ** 0.5 if whole else 1.0


def _squared(x: Tensor) -> float:
    """Return |x|^2 in float64, a few rows at a time: an embedding's gradient would be copied twice."""
    return sum(float(rows.double().square().sum()) for rows in x.split(SUMMED_ROWS))
