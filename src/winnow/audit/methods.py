"""Methods: which attack reads the gradient of which model.   (floor 5 · audit)

auto   exact spans: the search by prefixes for causal models, by whole texts for encoders
"""

from dataclasses import dataclass
from typing import final

from torch import nn

from winnow.audit.encoders import Classifier, encoder_attack
from winnow.audit.families import read_layout
from winnow.audit.leakage import Attack, Audit, Defence, span_attack
from winnow.audit.leakage import gradients as audit_gradients
from winnow.audit.leakage.batches import Texts
from winnow.base.errors import UsageError

METHODS = ("auto",)


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
    if read_layout(model).is_causal:
        return Subject(model, span_attack)
    return Subject(model if isinstance(model, Classifier) else Classifier.of(model, seed), encoder_attack)


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
    random weights on the mean of its states. See `leakage.gradients` for guarantee, cost and errors.
    """
    subject = subject_of(model, method, seed)
    return audit_gradients(
        subject.model, texts, defence=defence, seed=seed, longest=longest, attack=subject.attack
    )
