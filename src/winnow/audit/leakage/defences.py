"""Defences: what a client may do to a gradient before it sends it.   (floor 5 · audit)

clip=C     every text's gradient cut to norm C          noise=S     the same at C = 1, and S / B noise added
bf16 int8  entries rounded                              top-k=F     the largest share F of entries kept
dropout    the model in training mode                   freeze=P    parameters whose names hold P kept back
sum=K      one of K batches in one gradient, the others of random tokens: accumulation, or secure
           aggregation over K clients
lora=R     adapters of rank R on queries, keys and values in their first round, all else frozen
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from winnow.audit.families import parameters_of, read_layout
from winnow.audit.leakage.batches import Texts, gradients_of
from winnow.audit.leakage.lora import first_update
from winnow.base.errors import UsageError

CLIP = 1.0  # with noise=S, whose S is in units of it

WHOLE = ("sum", "lora")

Gradients = dict[str, Tensor]


@final
@dataclass(frozen=True)
class Defence:
    """A defence by `name`, with its number `value` or word `word`."""

    name: str
    value: float
    word: str = ""

    @property
    def label(self) -> str:
        """As it was written."""
        if self.name in ("none", "bf16", "int8", "dropout"):
            return self.name
        return f"{self.name}={self.word or f'{self.value:g}'}"

    @property
    def noise(self) -> float:
        """The noise multiplier; 0 for all but noise."""
        return self.value if self.name == "noise" else 0.0

    @property
    def n_batches(self) -> int:
        """How many batches go into one gradient."""
        return int(self.value) if self.name == "sum" else 1

    def gradients(self, model: nn.Module, texts: Texts, rng: torch.Generator) -> Gradients:
        """Return what a client that defends itself so would send for `texts`."""
        return _ACTS[self.name](self, model, texts, rng)


def read_defence(text: str) -> Defence:
    """Return the defence that `text` names. Raises UsageError for others and for numbers out of range."""
    name, _, value = text.partition("=")
    if name not in _ACTS:
        raise UsageError(f"{text!r} is no defence; expected one of {', '.join(sorted(_ACTS))}.")
    if name == "freeze":
        if not value:
            raise UsageError("freeze names no parameters; expected freeze=NAME, such as freeze=wte.")
        return Defence(name, 0.0, value)
    if name in ("none", "bf16", "int8", "dropout"):
        if value:
            raise UsageError(f"{name} takes no value, received {value!r}.")
        return Defence(name, 0.0)
    try:
        number = float(value)
    except ValueError:
        raise UsageError(f"{text!r} has no number; expected {name}=NUMBER.") from None
    most = 1.0 if name == "top-k" else math.inf
    if not 0 < number <= most or not math.isfinite(number) or (name in WHOLE and number != int(number)):
        raise UsageError(
            f"{text!r} is out of range; expected a number above 0 (top-k: at most 1; sum, lora: whole)."
        )
    return Defence(name, number)


def _bare(_: Defence, model: nn.Module, texts: Texts, rng: torch.Generator) -> Gradients:
    return gradients_of(model, texts)


def _clipped(defence: Defence, model: nn.Module, texts: Texts, rng: torch.Generator) -> Gradients:
    """Return the mean over texts of their gradients, each cut to a norm."""
    bound = CLIP if defence.name == "noise" else defence.value
    total: Gradients = {}
    for text in texts:
        one = gradients_of(model, [text])
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in one.values()))
        share = min(1.0, bound / max(norm, 1e-300)) / len(texts)
        total = {name: total.get(name, 0.0) + share * g for name, g in one.items()}
    return total


def _noisy(defence: Defence, model: nn.Module, texts: Texts, rng: torch.Generator) -> Gradients:
    deviation = defence.value * CLIP / len(texts)
    clipped = _clipped(defence, model, texts, rng)
    return {n: g + deviation * torch.randn(g.shape, generator=rng) for n, g in clipped.items()}


def _bf16(_: Defence, model: nn.Module, texts: Texts, rng: torch.Generator) -> Gradients:
    return {name: g.bfloat16().to(g.dtype) for name, g in gradients_of(model, texts).items()}


def _int8(_: Defence, model: nn.Module, texts: Texts, rng: torch.Generator) -> Gradients:
    rounded = {}
    for name, g in gradients_of(model, texts).items():
        step = float(g.abs().max()) / 127 or 1.0
        rounded[name] = (g / step).round() * step
    return rounded


def _top_k(defence: Defence, model: nn.Module, texts: Texts, rng: torch.Generator) -> Gradients:
    kept = {}
    for name, g in gradients_of(model, texts).items():
        n_kept = max(int(defence.value * g.numel()), 1)
        least = g.abs().flatten().kthvalue(g.numel() - n_kept + 1).values
        kept[name] = torch.where(g.abs() >= least, g, 0.0)
    return kept


def _dropout(_: Defence, model: nn.Module, texts: Texts, rng: torch.Generator) -> Gradients:
    was_training = model.training
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
        torch.set_rng_state(rng.get_state())
        try:
            return gradients_of(model.train(), texts)
        finally:
            model.train(was_training)


def _frozen(defence: Defence, model: nn.Module, texts: Texts, rng: torch.Generator) -> Gradients:
    found = gradients_of(model, texts)
    kept = {name: g for name, g in found.items() if defence.word not in name}
    if len(kept) == len(found):
        raise UsageError(
            f"freeze={defence.word} names no parameter; they are called such as {next(iter(found))}."
        )
    return kept


def _summed(defence: Defence, model: nn.Module, texts: Texts, rng: torch.Generator) -> Gradients:
    """Return the mean gradient of `texts` and of as many again, of random tokens, from each other client."""
    n_tokens = parameters_of(model)[read_layout(model).tokens].shape[0]
    others = [
        torch.randint(n_tokens, (len(text),), generator=rng).tolist()
        for _ in range(defence.n_batches - 1)
        for text in texts
    ]
    return gradients_of(model, [*texts, *others])


def _adapted(defence: Defence, model: nn.Module, texts: Texts, rng: torch.Generator) -> Gradients:
    """Return by how much adapters change the maps that they are on; nothing of other parameters."""
    found = gradients_of(model, texts)
    sent: Gradients = {}
    for layer in read_layout(model).layers:
        for place in layer.reads:  # one name where the three are fused
            if place.weight in found and place.weight not in sent:
                g = found[place.weight]
                wide = first_update(g if place.is_input_first else g.mT, int(defence.value))
                sent[place.weight] = wide if place.is_input_first else wide.mT
    return sent


_ACTS: Mapping[str, Callable[[Defence, nn.Module, Texts, torch.Generator], Gradients]] = {
    "none": _bare,
    "clip": _clipped,
    "noise": _noisy,
    "bf16": _bf16,
    "int8": _int8,
    "top-k": _top_k,
    "dropout": _dropout,
    "freeze": _frozen,
    "sum": _summed,
    "lora": _adapted,
}
