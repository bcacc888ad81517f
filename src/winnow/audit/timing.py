"""Timing: whether how long a model takes reveals what it is asked.   (floor 5 · audit)

    measure(prompt) -> numbers, one per token     seconds, active neurons, bytes on a wire
    timing(measure, {"law": [...], "medicine": [...]}, rng=0)

A reader of such numbers learns a classifier from prompts whose topic is known and guesses the topic of
others: a ridge logistic regression on a dozen statistics of each series, asked about prompts that it has not
seen. What counts is the area under its curve (AUC): the chance that of two prompts, one of a topic and one of
another, the right one gets the higher score; 0.5 is blind.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from jaxtyping import Float64, Int64
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm, rankdata

from winnow.audit.report import Bar, Bars, Controls, Finding, Table
from winnow.base.errors import UsageError
from winnow.base.rng import keyed

FOLDS = 5
LEAST_PROMPTS = 10  # of one topic
RIDGE = 1.0
HEAD = 4  # first numbers of a series that are looked at by themselves
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
SHUFFLES = 40
CONFIDENCE = 0.95
PLANTED = 2.0  # standard deviations that the planted topic is slower by
ORDER, CUT, SHUFFLE, PLANT = range(4)  # counters of the draws
DOES_NOT_SHOW = (
    "An interval that holds 0.5 does not show that nothing is revealed: another classifier, more prompts, or "
    "a finer clock may tell the topics apart.",
    "Topics are told apart here, not texts; and only on this machine, seen from where the numbers were "
    "taken: a network adds noise of its own.",
    "Prompts of one topic may differ from another's in length or in language: cut them to equal tokens.",
)

Prompt = str | Sequence[int]  # text, or the ids of its tokens
Measure = Callable[[Any], Sequence[float] | Float64[np.ndarray, " T"]]


@final
@dataclass(frozen=True)
class Auc:
    """An area under the curve and the interval that holds the true one with 95 % (DeLong)."""

    value: float
    low: float
    high: float

    @property
    def reveals(self) -> bool:
        """Whether the whole interval lies above 0.5."""
        return self.low > 0.5


def auc(positive: Float64[np.ndarray, " N"], negative: Float64[np.ndarray, " M"]) -> Auc:
    """Return the share of (positive, negative) pairs that scores order rightly, ties counted half.

    The interval is DeLong's, from the variance of each score's own share; it holds for independent scores.
    Raises UsageError with fewer than two of either.
    """
    n, m = len(positive), len(negative)
    if min(n, m) < 2:
        raise UsageError(f"received {n} and {m} scores; expected at least 2 of each. Measure more prompts.")
    ranks = rankdata(np.concatenate([positive, negative]))
    over = (ranks[:n] - rankdata(positive)) / m
    under = 1 - (ranks[n:] - rankdata(negative)) / n
    value = float(over.mean())
    deviation = float(np.sqrt(over.var(ddof=1) / n + under.var(ddof=1) / m))
    half = float(norm.ppf(0.5 + CONFIDENCE / 2)) * deviation
    return Auc(value, max(value - half, 0.0), min(value + half, 1.0))


def features(series: Sequence[float] | Float64[np.ndarray, " T"]) -> Float64[np.ndarray, " M"]:
    """Return what a series is described by: its first numbers, mean, deviation, quantiles, drift."""
    x = np.asarray(series, np.float64)
    if x.ndim != 1 or len(x) < HEAD or not np.isfinite(x).all():
        raise UsageError(
            f"a measurement has shape {x.shape} or is not finite; expected at least {HEAD} finite numbers."
        )
    half = len(x) // 2
    drift = x[half:].mean() - x[:half].mean()
    return np.concatenate([x[:HEAD], [x.mean(), x.std(), drift], np.quantile(x, QUANTILES)])


def fit_logistic(
    x: Float64[np.ndarray, "N M"], labels: Int64[np.ndarray, " N"], ridge: float = RIDGE
) -> Float64[np.ndarray, " M_and_one"]:
    """Return weights and offset, last, that minimise the logistic loss plus ``ridge / 2`` of their squares.

    The offset is not penalised. The loss is convex: the minimum is unique.
    """
    signs = 2.0 * labels - 1.0
    design = np.hstack([x, np.ones((len(x), 1))])

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (design @ w)
        slope = design.T @ (-signs * expit(-margins))
        slope[:-1] += ridge * w[:-1]
        return float(np.logaddexp(0, -margins).sum() + 0.5 * ridge * w[:-1] @ w[:-1]), slope

    return minimize(loss, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B").x


def guesses(
    x: Float64[np.ndarray, "N M"], labels: Int64[np.ndarray, " N"], rng: np.random.Generator
) -> Float64[np.ndarray, " N"]:
    """Return for each row the score of a classifier that has not seen it: five folds, each as mixed as all.

    Rows are scaled by the mean and deviation of those that the classifier has seen.
    """
    folds = np.empty(len(x), np.int64)
    for label in (0, 1):
        members = rng.permutation(np.flatnonzero(labels == label))
        folds[members] = np.arange(len(members)) % FOLDS
    scores = np.empty(len(x))
    for fold in range(FOLDS):
        seen, unseen = x[folds != fold], x[folds == fold]
        deviation = seen.std(0)
        deviation[deviation == 0] = 1.0
        scaled, asked = (seen - seen.mean(0)) / deviation, (unseen - seen.mean(0)) / deviation
        weights = fit_logistic(scaled, labels[folds != fold])
        scores[folds == fold] = asked @ weights[:-1] + weights[-1]
    return scores


def timing(
    measure: Measure,
    prompts_by_topic: Mapping[str, Sequence[Prompt]],
    *,
    subject: str = "a series of numbers per prompt",
    rng: int = 0,
) -> Finding:
    """Measure every prompt and tell each topic from the others by the numbers alone.

    Prompts are measured in an order drawn from `rng`, so that a clock that drifts belongs to no topic. Each
    topic's interval holds by itself; of many topics one may lie above 0.5 by chance. Controls: random prompts
    made slower by two deviations must be told apart, shuffled topics must not. Costs one call of `measure`
    per prompt. Raises UsageError for fewer than two topics, fewer than ten prompts of one, and series that
    are short or not finite.
    """
    started = time.perf_counter()
    topics = tuple(prompts_by_topic)
    _check(prompts_by_topic)
    labels = np.concatenate([np.full(len(prompts_by_topic[t]), i) for i, t in enumerate(topics)])
    prompts = [prompt for topic in topics for prompt in prompts_by_topic[topic]]
    x = np.empty((len(prompts), HEAD + 3 + len(QUANTILES)))
    for place in keyed(rng, ORDER).permutation(len(prompts)):
        x[place] = features(measure(prompts[place]))
    told = {t: _told(x, (labels == i).astype(np.int64), keyed(rng, CUT)) for i, t in enumerate(topics)}
    controls = _controls(x, (labels == 0).astype(np.int64), rng)
    best = max(told, key=lambda topic: told[topic].low)
    reveals = [topic for topic in topics if told[topic].reveals]
    rows = tuple((topic, len(prompts_by_topic[topic]), a.value, a.low, a.high) for topic, a in told.items())
    bars = tuple(
        Bar(topic, a.value, (a.low, a.high), "leak" if a.reveals else "safe") for topic, a in told.items()
    )
    return Finding(
        audit="timing",
        subject=f"{subject}: {len(prompts)} prompts on {', '.join(topics)}",
        verdict=_verdict(reveals, told[best], best),
        exact_match=0.0,
        token_recall=0.0,
        seconds=time.perf_counter() - started,
        controls=controls,
        certificate={"auc": told[best].value, "auc_low": told[best].low, "auc_high": told[best].high},
        does_not_show=DOES_NOT_SHOW,
        tables=(Table("Topics told apart", ("topic", "prompts", "AUC", "low", "high"), rows),),
        plots=(Bars("Chance to tell a topic from the others", "AUC; 0.5 is blind", bars, mark=0.5),),
        details={"numbers per series used": x.shape[1], "folds": FOLDS, "confidence": CONFIDENCE},
    )


def beside(plain: Finding, defended: Finding, defence: str) -> Finding:
    """Return `plain` with what the same audit found under a defence: verdict, figures, table.

    The defended figures bear the defence's name in the certificate; void where either is.
    """
    prefix = defence.replace(" ", "_")
    tables = [Table(f"{table.title}, {defence}", table.columns, table.rows) for table in defended.tables]
    controls = Controls(
        plain.controls.planted_found and defended.controls.planted_found,
        plain.controls.noise_found or defended.controls.noise_found,
        (*plain.controls.notes, *(f"{defence}: {note}" for note in defended.controls.notes)),
    )
    return replace(
        plain,
        verdict=f"{plain.verdict}; with {defence} {defended.verdict}",
        seconds=plain.seconds + defended.seconds,
        controls=controls,
        certificate={**plain.certificate, **{f"{prefix}_{k}": v for k, v in defended.certificate.items()}},
        tables=(*plain.tables, *tables),
        plots=(*plain.plots, *(replace(p, title=f"{p.title}, {defence}") for p in defended.plots)),
    )


def _check(prompts_by_topic: Mapping[str, Sequence[Prompt]]) -> None:
    if len(prompts_by_topic) < 2:
        raise UsageError(f"received {len(prompts_by_topic)} topics; expected at least 2 to tell apart.")
    for topic, prompts in prompts_by_topic.items():
        if len(prompts) < LEAST_PROMPTS:
            raise UsageError(
                f"topic {topic!r} has {len(prompts)} prompts; expected {LEAST_PROMPTS} or more. Add text."
            )


def _told(x: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Auc:
    scores = guesses(x, labels, rng)
    return auc(scores[labels == 1], scores[labels == 0])


def _controls(x: np.ndarray, labels: np.ndarray, rng: int) -> Controls:
    """Slow one topic down and look for it; shuffle the topics many times and look for them."""
    deviation = x.std(0)
    deviation[deviation == 0] = 1.0  # what never varies hides nothing that is planted in it
    plant = keyed(rng, PLANT)
    mixed = plant.permutation(labels)  # so that only what is planted tells them apart
    slower = x + PLANTED * deviation * mixed[:, None]
    planted = _told(slower, mixed, plant)
    shuffle = keyed(rng, SHUFFLE)
    blind = np.array([_told(x, shuffle.permutation(labels), shuffle).value for _ in range(SHUFFLES)])
    off = float(blind.mean() - 0.5)
    error = float(blind.std(ddof=1) / np.sqrt(SHUFFLES))
    return Controls(
        planted_found=planted.reveals,
        noise_found=off > 0.02 + 3 * error,
        notes=(
            f"planted: a random half made {PLANTED:g} deviations slower is told apart with AUC "
            f"{planted.value:.3f} ({planted.low:.3f} to {planted.high:.3f})",
            f"noise: {SHUFFLES} shuffles of the topics give a mean AUC of {blind.mean():.3f}",
        ),
    )


def _verdict(reveals: Sequence[str], best: Auc, topic: str) -> str:
    shown = f"AUC {best.value:.3f} ({best.low:.3f} to {best.high:.3f})"
    if reveals:
        return f"the numbers reveal the topic: {', '.join(reveals)} told from the others, {topic} by {shown}"
    return f"no topic was told apart; the best, {topic}, has {shown}"
