"""Texts: one short text fitted to a gradient, each of its tokens a mixture.   (floor 5 · audit)

Position i holds a mixture of the tokens that the embedding's gradient names, by a softmax of logits that are
fitted; a causal model's labels are the mixtures of the next positions. The heaviest tokens are then exchanged
between positions while that brings the gradient nearer, ties broken by a language model where there is one.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from winnow.audit.encoders import Classifier
from winnow.audit.families import read_layout
from winnow.audit.front import Front
from winnow.audit.leakage.attack import CERTIFIED, Recovery, position_rows, token_rows
from winnow.audit.matching.images import label_of
from winnow.audit.matching.match import Gradients, Matching, cosine, match
from winnow.base.rng import generator

MOST_TOKENS = 16  # of a text: a start's work grows with it, and its luck falls
LANGUAGE = 1e-3  # weight of a language model's nats per token beside the distance
SWEEPS = 4

Language = Callable[[Sequence[int]], float]


def matching_attack(
    model: nn.Module,
    gradients: Mapping[str, Tensor],
    *,
    noise: float | None = None,
    longest: int = 512,
    options: Matching | None = None,
    language: Language | None = None,
) -> Recovery:
    """Return the one text that `gradients` fit, by names of ``model.named_parameters()``.

    For gradients of one text of at most 16 tokens, of a small model with learned positions (GPT-2, OPT, or a
    `Classifier`): its length is read from their rows. `language` gives a text's nats per token. Costs 200
    gradients of the gradient per start. `noise` is not used. Raises ModelError for an unknown family.
    """
    started = time.perf_counter()
    front = Front.of(model)
    n = position_rows(front, gradients)
    if n is None or n > min(longest, MOST_TOKENS):
        found = "not known" if n is None else f"{n} tokens"
        reason = f"the length is {found}; matching takes texts of at most {min(longest, MOST_TOKENS)}"
        return Recovery((), False, None, (), 0, 0, time.perf_counter() - started, reason)
    used = token_rows(front, gradients)
    fit = _Fit.of(model, gradients, n, torch.arange(front.n_tokens) if used is None else used)
    matched = match(fit.gradient, fit.observed, fit.starts(generator(0)), options)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        text, last = fit.heaviest(matched.x)
        text = fit.exchanged(text, last, language)
        error = fit.error(text, last)
    ids = tuple(text) if last is None else (*text, last)
    certified = error <= CERTIFIED
    reason = "" if certified else f"the nearest of {matched.starts} starts is off by {error:.2g}"
    return Recovery(
        (ids,) if certified else (),
        last is not None and certified,
        error,
        (),
        n * len(fit.tokens),
        matched.starts,
        time.perf_counter() - started,
        reason,
    )


@final
@dataclass(frozen=True)
class _Fit:
    """One text of `n` inputs among `tokens`; x holds their logits, of a causal model the last label's too."""

    model: nn.Module
    wanted: Mapping[str, Tensor]
    observed: list[Tensor]
    embedding: Float[Tensor, "V D"]
    tokens: Int64[Tensor, " N"]
    n: int
    label: int | None  # of a classifier

    @classmethod
    def of(cls, model: nn.Module, gradients: Mapping[str, Tensor], n: int, tokens: Tensor) -> "_Fit":
        layout = read_layout(model)
        skipped = {layout.tokens, layout.positions, layout.segments}
        wanted = {k: p for k, p in model.named_parameters() if k in gradients and k not in skipped}
        embedding = dict(model.named_parameters())[layout.tokens].detach()
        label = None
        if isinstance(model, Classifier):
            label = label_of(gradients["head.weight"], gradients.get("head.bias"))
        return cls(model, wanted, [gradients[k] for k in wanted], embedding, tokens, n, label)

    def starts(self, rng: torch.Generator) -> Iterator[Tensor]:
        """Return logits without end: nearly even mixtures."""
        size = self.n * len(self.tokens) + (0 if self.label is not None else len(self.embedding))
        while True:
            yield 0.5 * torch.randn(size, generator=rng)

    def gradient(self, x: Tensor) -> Gradients:
        """Return the gradient that mixtures with the logits `x` make."""
        mixed = x[: self.n * len(self.tokens)].view(self.n, -1).softmax(1)
        embedded = mixed @ self.embedding[self.tokens]
        if self.label is not None:
            return self.made(embedded, None)
        following = torch.zeros(self.n - 1, len(self.embedding)).index_add(1, self.tokens, mixed[1:])
        last = x[self.n * len(self.tokens) :].softmax(0)
        return self.made(embedded, torch.cat([following, last[None]]))

    def made(self, embedded: Float[Tensor, "T D"], labels: Float[Tensor, "T V"] | None) -> Gradients:
        """Return the gradient of inputs and, of a causal model, their labels' shares."""
        if isinstance(self.model, Classifier):
            states = self.model.encoder(inputs_embeds=embedded[None]).last_hidden_state
            logits = self.model.head(states.mean(1))
            loss = nn.functional.cross_entropy(logits, torch.tensor([self.label]))
        else:
            assert labels is not None
            logits = self.model(inputs_embeds=embedded[None]).logits[0]
            loss = nn.functional.cross_entropy(logits, labels)
        return torch.autograd.grad(loss, list(self.wanted.values()), create_graph=True)

    def heaviest(self, x: Tensor) -> tuple[list[int], int | None]:
        """Return the heaviest token of each position, and the last label of a causal model."""
        logits = x[: self.n * len(self.tokens)].view(self.n, -1)
        text = self.tokens[logits.argmax(1)].tolist()
        return text, None if self.label is not None else int(x[self.n * len(self.tokens) :].argmax())

    def of_text(self, text: Sequence[int], last: int | None) -> Gradients:
        """Return the gradient of whole tokens."""
        labels = None
        if last is not None:
            labels = nn.functional.one_hot(torch.tensor([*text[1:], last]), len(self.embedding)).float()
        return [g.detach() for g in self.made(self.embedding[torch.tensor(list(text))], labels)]

    def exchanged(self, text: list[int], last: int | None, language: Language | None) -> list[int]:
        """Return `text` after exchanges of two positions, as long as one brings the gradient nearer."""

        def cost(tried: list[int]) -> float:
            distance = float(cosine(self.of_text(tried, last), self.observed))
            return distance if language is None else distance + LANGUAGE * language([*tried])

        best = cost(text)
        for _ in range(SWEEPS):
            before = best
            for i in range(self.n):
                for j in range(i + 1, self.n):
                    tried = list(text)
                    tried[i], tried[j] = tried[j], tried[i]
                    value = best if tried == text else cost(tried)
                    if value < best - 1e-9:
                        text, best = tried, value
            if best == before:
                break
        return text

    def error(self, text: Sequence[int], last: int | None) -> float:
        """Return the relative error of the text's gradient, its scale fitted: the loss's is not known."""
        made = torch.cat([g.flatten() for g in self.of_text(text, last)]).double()
        seen = torch.cat([g.flatten() for g in self.observed]).double()
        scale = float(made @ seen) / max(float(made @ made), 1e-300)
        return float((seen - scale * made).norm() / seen.norm().clamp(min=1e-300))
