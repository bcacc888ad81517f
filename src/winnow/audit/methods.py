"""Methods: which attack reads the gradient of which model.   (floor 5 · audit)

auto      exact spans: the search by prefixes for causal models, by whole texts for encoders
matching  inputs fitted to the gradient, for one short text; where spans tell nothing
"""

from dataclasses import dataclass
from typing import final

from torch import nn

from winnow.audit.encoders import Classifier, encoder_attack
from winnow.audit.families import read_layout
from winnow.audit.leakage import Attack, Audit, Defence, span_attack
from winnow.audit.leakage import gradients as audit_gradients
from winnow.audit.leakage.batches import Texts
from winnow.audit.matching import matching_attack
from winnow.base.errors import UsageError

METHODS = ("auto", "matching")


@final
@dataclass(frozen=True)
class Subject:
    """A model with a loss, and the attack that reads its gradients."""

    model: nn.Module
    attack: Attack

    @property
    def is_encoder(self) -> bool:
        """Whether the texts are an encoder's, between its marks."""
        return isinstance(self.model, Classifier)


def subject_of(model: nn.Module, method: str = "auto", seed: int = 0) -> Subject:
    """Return `model` with a loss, and the attack `method` on it; an encoder gets a head of its own.

    Raises UsageError for another method and ModelError for another family.
    """
    if method not in METHODS:
        raise UsageError(f"{method!r} is no method; expected one of {', '.join(METHODS)}.")
    is_causal = read_layout(model).is_causal
    if not is_causal and not isinstance(model, Classifier):
        model = Classifier.of(model, seed)
    if method == "matching":
        return Subject(model, matching_attack)
    return Subject(model, span_attack if is_causal else encoder_attack)


def gradients(
    model: nn.Module,
    texts: Texts,
    *,
    method: str = "auto",
    defence: str | Defence = "none",
    seed: int = 0,
    longest: int = 512,
) -> Audit:
    """Return what the gradient of `model` on `texts`, defended by `defence`, gives away.

    `model` is a causal model of transformers, or an encoder: that is audited with a classification head of
    random weights on the mean of its states. ``method="matching"`` fits one text of at most 16 tokens to the
    gradient in place of reading it. See `leakage.gradients` for guarantee, cost and errors.
    """
    subject = subject_of(model, method, seed)
    return audit_gradients(
        subject.model, texts, defence=defence, seed=seed, longest=longest, attack=subject.attack
    )
