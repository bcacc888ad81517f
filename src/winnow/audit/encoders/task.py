"""Task: a loss on an encoder, as one that is fine-tuned has.   (floor 5 · audit)

The mean of a text's last states, through a linear head of random weights, against the class of the text. The
class is a number made of the token ids, so that it depends on the text and on nothing around it; an attacker
is not told.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from winnow.audit.families import read_layout
from winnow.audit.leakage.batches import IGNORED, Texts, padded
from winnow.base.errors import ModelError
from winnow.base.rng import generator

N_CLASSES = 3
EMBEDDING = "embeddings.word_embeddings.weight"  # BERT's, below its backbone


@final
@dataclass(frozen=True)
class Loss:
    """What transformers' models return, as far as an audit reads it."""

    loss: Tensor


@final
class Classifier(nn.Module):
    """An encoder with a classification head; its parameters are `encoder.*` and `head.*`."""

    def __init__(self, encoder: nn.Module, width: int, seed: int = 0) -> None:
        """Put a head of random weights on `encoder`, whose states are `width` wide."""
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, N_CLASSES)
        with torch.no_grad():
            drawn = torch.randn(self.head.weight.shape, generator=generator(seed))
            self.head.weight.copy_(drawn / width**0.5)
            self.head.bias.zero_()
        self.train(encoder.training)

    @classmethod
    def of(cls, model: nn.Module, seed: int = 0) -> "Classifier":
        """Return a classifier on the backbone of `model`, whose weights it shares; raises ModelError."""
        layout = read_layout(model)
        if layout.is_causal:
            raise ModelError("the model is causal; expected an encoder such as BERT. Audit it as it is.")
        backbone = model.get_submodule(layout.tokens.removesuffix(EMBEDDING).rstrip("."))
        return cls(backbone, dict(model.named_parameters())[layout.tokens].shape[1], seed)

    def forward(self, input_ids: Int64[Tensor, "B T"], labels: Int64[Tensor, "B T"]) -> Loss:
        """Return the mean loss of a padded batch; `labels` say where there are tokens."""
        mask = labels != IGNORED
        classes = (input_ids * mask).sum(1) % N_CLASSES
        return Loss(nn.functional.cross_entropy(self.head(self.pooled(input_ids, mask)), classes))

    def pooled(self, input_ids: Tensor, mask: Tensor) -> Float[Tensor, "B D"]:
        """Return the mean of each text's last states."""
        states = self.encoder(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def states_of(self, texts: Texts) -> Float[Tensor, "B D"]:
        """Return the pooled states of `texts`, with their graph."""
        return self.pooled(padded(texts, 0), padded(texts, IGNORED) != IGNORED)

    def weighted_gradients(
        self, texts: Texts, classes: Sequence[int], weights: Float[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the gradient of the sum of the texts' losses, each times its weight."""
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            logits = self.head(self.states_of(texts))
            losses = nn.functional.cross_entropy(logits, torch.tensor(list(classes)), reduction="none")
            found = torch.autograd.grad(weights.to(losses) @ losses, list(named.values()), allow_unused=True)
        return {name: g for name, g in zip(named, found, strict=True) if g is not None}
