"""Audit: an attack between its controls, and the matrix of defences.   (floor 5 · audit)

Each audit first attacks the plain gradient of a text that it planted itself, which must be found, and noise
of the gradient's shapes, in which nothing may be found. Where either fails the audit is void.

Does not show: that what this attack misses is safe. It reads exact spans and certifies; an attacker who
guesses by a language model, or fits continuously, needs less.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from winnow.audit.front import Front
from winnow.audit.leakage.attack import Attack, Recovery, span_attack
from winnow.audit.leakage.batches import Texts, check_texts, gradients_of, loss_of
from winnow.audit.leakage.defences import CLIP, Defence, read_defence
from winnow.audit.leakage.lora import tokens_in_first_update
from winnow.audit.leakage.meters import Noise, implied, noise_of
from winnow.audit.leakage.score import Score, score
from winnow.audit.report import Bar, Bars, Controls, Finding, Recovered, Table
from winnow.base.errors import ModelError, UsageError
from winnow.base.rng import generator
from winnow.linalg.privacy import Account, Release, account

PLANTED_TOKENS = 8
DELTA = 1e-5
MATRIX = (
    "defence",
    "verdict",
    "exact match",
    "token recall",
    "epsilon, server",
    "epsilon, final model",
    "recovery bound",
    "loss before",
    "loss after",
)
DOES_NOT_SHOW = (
    "That what was not found is safe: the attack reads exact spans; attackers who guess by a language model "
    "or fit continuously need less.",
    "What other updates of the same texts would add.",
)


@final
@dataclass(frozen=True)
class Audit:
    """One audit of one gradient. `score` is None where the truth is not known.

    `noise` is what was measured in it, `implied` what that is worth at `DELTA` in one release to who sees it,
    None where it has no epsilon or clip and records are not known.
    """

    defence: str
    recovery: Recovery
    score: Score | None
    controls: Controls
    noise: Noise | None = None
    implied: Account | None = None

    @property
    def verdict(self) -> str:
        """Whether a whole text was found, a part, or nothing."""
        whole = self.recovery.is_certified if self.score is None else self.score.exact_match > 0
        some = bool(self.recovery.texts) if self.score is None else self.score.token_recall > 0
        return "exposed" if whole else "partly exposed" if some else "nothing found"

    def finding(self, subject: str, decode: Callable[[list[int]], str] | None = None) -> Finding:
        """Return the result in the form that all audits share; `decode` makes text of token ids.

        Where the truth is not known, what the certificate covers counts as found whole.
        """
        found, score = self.recovery, self.score
        certified = 1.0 if found.is_certified and found.texts else 0.0
        pieces = [
            Recovered(f"text {i}", len(ids), decode(list(ids)) if decode else " ".join(map(str, ids)), ids)
            for i, ids in enumerate(found.texts, 1)
        ]
        details = {
            "defence": self.defence,
            "texts": len(found.texts),
            "last_token": None if score is None else score.last_token,
            "distinct_inputs": ", ".join(map(str, found.ranks)) or None,
            "because": found.reason or None,
            "noise_per_entry": self.noise.deviation if self.noise else None,
            "noise_kind": str(self.noise.kind) if self.noise else None,
            "noise_measured_in": self.noise.source if self.noise else None,
            "noise_multiplier_implied": self.implied.release.noise if self.implied else None,
            "epsilon_server_implied": self.implied.server if self.implied else None,
        }
        return Finding(
            audit="gradients" if score else "update",
            subject=subject,
            verdict=self.verdict,
            exact_match=score.exact_match if score else certified,
            token_recall=score.token_recall if score else certified,
            seconds=found.seconds,
            controls=self.controls,
            certificate={"relative_error": found.certificate, "is_certified": found.is_certified},
            does_not_show=DOES_NOT_SHOW,
            recovered=tuple(pieces),
            details={key: value for key, value in details.items() if value is not None},
        )


def gradients(
    model: nn.Module,
    texts: Texts,
    *,
    defence: str | Defence = "none",
    seed: int = 0,
    longest: int = 512,
    attack: Attack = span_attack,
) -> Audit:
    """Return what the gradient of `model` on `texts`, defended by `defence`, gives away.

    `model` is a causal model of transformers, `texts` are token ids. The attacker knows the weights, and the
    noise where there is some. Costs three attacks: the planted text, noise, and the audit's own. With
    ``sum=K`` there are K - 1 more batches in the gradient, which nobody asks for. Raises UsageError for texts
    that mean nothing and ModelError for a model of another family.
    """
    chosen = read_defence(defence) if isinstance(defence, str) else defence
    front = Front.of(model)
    check_texts(texts, front.n_tokens)
    rng = generator(seed)
    controls = run_controls(model, seed, attack)
    given = chosen.gradients(model, texts, rng)
    measured = noise_of(front, given)
    worth = None if measured is None else implied(measured, CLIP, len(texts), 1.0, 1, DELTA)
    if chosen.name == "lora":
        found, scored = _first_round(front, given, texts, int(chosen.value))
    else:
        noise = chosen.noise * CLIP / len(texts) or None
        found = attack(model, given, noise=noise, longest=longest)
        scored = score(found.texts, texts)
    return Audit(chosen.label, found, scored, controls, measured, worth if chosen.noise else None)


def _first_round(
    front: Front, given: Mapping[str, Tensor], texts: Texts, n_rank: int
) -> tuple[Recovery, Score]:
    """Return which tokens adapters show at their places; whole texts are not put together from them."""
    started = time.perf_counter()
    longest = max(map(len, texts)) - 1
    shown, ranks = tokens_in_first_update(front, given, n_rank, longest)
    found_at = [set(each.tolist()) for each in shown]
    places = [(place % len(found_at), token) for text in texts for place, token in enumerate(text[:-1])]
    n_found = sum(token in found_at[place] for place, token in places)
    seconds = time.perf_counter() - started
    reason = "adapters show tokens at their places; texts are not put together from them"
    found = Recovery((), False, None, ranks, sum(map(len, shown)), 0, seconds, reason)
    return found, Score(0.0, n_found / sum(map(len, texts)), 0.0)


def audit_given(
    model: nn.Module,
    given: Mapping[str, Tensor],
    *,
    seed: int = 0,
    longest: int = 512,
    clip: float | None = None,
    records: int = 1,
) -> Audit:
    """Return what gradients that somebody made give away; the truth is not known, the certificate speaks.

    With `clip`, the norm that each of `records` was cut to before their mean, the noise that is measured
    implies an epsilon.

    An update is a gradient times a negative step: where the gradients as given make no certified text, their
    negatives are tried. Raises as `gradients` does.
    """
    if not Front.of(model).layout.is_causal:
        raise ModelError("the base is an encoder, whose updates are not read; expected a causal model.")
    controls = run_controls(model, seed)
    found = span_attack(model, given, longest=longest)
    if not found.is_certified:
        turned = span_attack(model, {name: -g for name, g in given.items()}, longest=longest)
        found = turned if turned.is_certified else found
    measured = noise_of(Front.of(model), given)
    worth = None
    if measured is not None and clip is not None:
        worth = implied(measured, clip, records, 1.0, 1, DELTA)
    return Audit("as given", found, None, controls, measured, worth)


def run_controls(model: nn.Module, seed: int, attack: Attack = span_attack) -> Controls:
    """Attack the gradient of a planted random text, and noise of its shapes and sizes."""
    rng = generator(seed)
    front = Front.of(model)
    n_tokens = min(PLANTED_TOKENS, front.n_positions or PLANTED_TOKENS, front.width // 3)
    secret = torch.randint(0, front.n_tokens, (n_tokens,), generator=rng).tolist()
    was_training = model.training
    plain = gradients_of(model.eval(), [secret])
    model.train(was_training)
    planted = attack(model, plain, longest=2 * n_tokens)
    noise = {
        name: float(g.square().mean().sqrt()) * torch.randn(g.shape, generator=rng)
        for name, g in plain.items()
    }
    nothing = attack(model, noise, longest=2 * n_tokens)
    return Controls(tuple(secret) in planted.texts, bool(nothing.texts))


@final
@dataclass(frozen=True)
class Row:
    """One defence: what was found, both epsilons, the bound, and the loss that training reaches.

    `account` is None without noise: no epsilon is finite. `bound` is the most that any attacker raises the
    right guess of one token to, from the model's own `prior`; 1 without noise.
    """

    audit: Audit
    account: Account | None
    bound: float
    loss_before: float
    loss_after: float


@final
@dataclass(frozen=True)
class Training:
    """What the matrix assumes of the run whose gradients are audited: `steps` releases, each of a sample."""

    steps: int = 1
    rate: float = 1.0
    delta: float = 1e-5
    step_size: float = 0.05
    trained_steps: int = 5


def defence_matrix(
    model: nn.Module,
    texts: Texts,
    defences: Sequence[str],
    training: Training | None = None,
    seed: int = 0,
    attack: Attack = span_attack,
) -> tuple[Row, ...]:
    """Return a row per defence: recovery, epsilons, bound, and the loss of a few steps with its gradients.

    The prior is the model's geometric mean probability of a token of `texts`. `model` is left as it was.
    Costs an audit and `trained_steps` gradients per defence. Raises UsageError for an unknown defence.
    """
    if not defences:
        raise UsageError("no defence is named; expected at least one, such as none.")
    chosen = [read_defence(each) for each in defences]
    plan = Training() if training is None else training
    with torch.no_grad():
        before = float(loss_of(model, texts))
    prior = math.exp(-before)
    rows = []
    for each in chosen:
        audit = gradients(model, texts, defence=each, seed=seed, attack=attack)
        known = account(Release(each.noise, plan.rate, plan.steps), plan.delta) if each.noise else None
        bound = 1.0 if known is None else known.recovery(min(max(prior, 1e-12), 1 - 1e-12))
        rows.append(Row(audit, known, bound, before, _trained(model, texts, each, plan, seed)))
    return tuple(rows)


def matrix_finding(rows: Sequence[Row], subject: str) -> Finding:
    """Return the matrix as one finding, as bad as its worst row; no text is kept in it."""
    audits = [row.audit for row in rows]
    scores = [audit.score for audit in audits if audit.score is not None]
    exposed = [audit.defence for audit in audits if audit.verdict != "nothing found"]
    return Finding(
        audit="gradients",
        subject=subject,
        verdict=f"exposed under {', '.join(exposed)}" if exposed else "nothing found",
        exact_match=max(score.exact_match for score in scores),
        token_recall=max(score.token_recall for score in scores),
        seconds=sum(audit.recovery.seconds for audit in audits),
        controls=audits[0].controls,  # of the model and the seed, the same in every row
        certificate={},
        does_not_show=DOES_NOT_SHOW,
        tables=(Table("one gradient under each defence", MATRIX, tuple(map(_cells, rows))), *_by_noise(rows)),
        plots=_plots(rows),
    )


def _noisy(rows: Sequence[Row]) -> list[tuple[float, Row]]:
    """Return the rows with noise by their multiplier; what is as sent without any stands at 0."""
    found = [(row.account.release.noise if row.account else 0.0, row) for row in rows]
    axis = sorted((each for each in found if each[0] or each[1].audit.defence == "none"), key=lambda e: e[0])
    return axis if any(noise for noise, _ in axis) else []


def _by_noise(rows: Sequence[Row]) -> tuple[Table, ...]:
    axis = tuple((noise, *_cells(row)[2:]) for noise, row in _noisy(rows))
    return (Table("by noise multiplier", ("noise multiplier", *MATRIX[2:]), axis),) if axis else ()


def _plots(rows: Sequence[Row]) -> tuple[Bars, ...]:
    """Return recovery, its bound and the loss of training along one axis of noise."""
    axis = _noisy(rows)
    if not axis:
        return ()
    scores = [(noise, row.audit.score.token_recall) for noise, row in axis if row.audit.score]
    most = max(max(row.loss_after, row.loss_before) for _, row in axis)
    recall = tuple(Bar(f"{noise:g}", share, kind="leak" if share else "safe") for noise, share in scores)
    bound = tuple(Bar(f"{noise:g}", row.bound) for noise, row in axis)
    loss = tuple(Bar(f"{noise:g}", row.loss_after) for noise, row in axis)
    return (
        Bars("Tokens read back, by noise multiplier", "share", recall),
        Bars("Bound on guessing a token right, by noise multiplier", "probability", bound),
        Bars(
            "Loss after the same steps, by noise multiplier",
            "nats",
            loss,
            most=most,
            mark=rows[0].loss_before,
        ),
    )


def _cells(row: Row) -> tuple[str | float | None, ...]:
    score, known = row.audit.score, row.account
    found = (None, None) if score is None else (score.exact_match, score.token_recall)
    epsilons = (None, None) if known is None else (known.server, known.final_model)
    return row.audit.defence, row.audit.verdict, *found, *epsilons, row.bound, row.loss_before, row.loss_after


def _trained(model: nn.Module, texts: Texts, defence: Defence, plan: Training, seed: int) -> float:
    """Return the loss behind a few steps of defended gradient descent; the weights are put back."""
    rng = generator(seed + 1)
    named = dict(model.named_parameters())
    kept = {name: p.detach().clone() for name, p in named.items()}
    try:
        for _ in range(plan.trained_steps):
            given = defence.gradients(model, texts, rng)
            with torch.no_grad():
                for name, g in given.items():
                    named[name].sub_(plan.step_size * g)
        with torch.no_grad():
            return float(loss_of(model, texts))
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                named[name].copy_(value)
