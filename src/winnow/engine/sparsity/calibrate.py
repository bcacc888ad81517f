"""Calibrate: the cheapest plan that keeps the fidelity asked for.   (floor 5 · engine)

    observe     one dense pass over the text: moments and samples of what is read, layer by layer
    fit         per layer, what each setting of the closed forms costs in bytes and loses locally
    weigh       per layer, how much divergence a unit of local loss causes (measured)
    tune        per layer, fit further the rank that the budget points at, at its price
    choose      one exchange rate for all layers: the least bytes whose summed loss fits the target
    verify      the plan's own divergence on held-out windows; tighten or relax, and choose again
    leave out   where it is asked for: the fewest heads that what is left of the target allows, in the layers
                that lose least by them (measured)

Losses of different layers add up: a divergence is quadratic in a small perturbation and the layers' errors
are nearly uncorrelated. Where that is not so, `verify` sees it, and its figure is the one that counts. Each
finished stage but the last can be kept in a folder, from which an interrupted calibration goes on to the same
bits.
"""

import hashlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.base.progress import Progress
from winnow.engine.sparsity.finetune import Effort, tuned, tuned_choices
from winnow.engine.sparsity.frontier import (
    Choice,
    Kind,
    dense_choice,
    frontier,
    held_out,
    labelled,
    mlp_bytes,
    typical,
)
from winnow.engine.sparsity.heldout import HeldOut, Measured, some
from winnow.engine.sparsity.observe import LayerInputs, Observer
from winnow.engine.sparsity.plan import Plan, Provenance
from winnow.engine.sparsity.predictor import HeadPredictor, Lookahead, LowRankPredictor, fit_heads
from winnow.engine.sparsity.resume import Stages, packed, unpacked
from winnow.engine.sparsity.sanity import label_warnings, length_warnings
from winnow.engine.sparsity.search import HEAD_TRIES, Chosen, HeadLadder, Ladders
from winnow.engine.weights import Weights

MARGIN = 0.9  # a plan is held to this share of the target, since other text will differ
AIM = 0.96  # and aimed at this share of that, since settings come in steps
NEAR_ENOUGH = 0.93  # a verified plan that uses so much of what it may is not improved further
PROBES = 4  # plans verified; twice as many when none of them holds
SAMPLE_NUMBERS = 2**24  # of a layer's sample, rows times width
LEAST_SAMPLE_ROWS = 1024
LABEL_ROWS = 256  # looked at to see whether a layer's neurons ever, or always, fire
EFFORT = Effort()
VALIDATION_TOKENS = 32_768  # more hold no surprises worth their time
WEIGHING_SHARE = 0.3  # of the tokens read by observing, spent on weighing all layers together
PROBE_WINDOWS = 8
PROBE_TOKENS = 128  # of a window, at least, when layers are weighed
TUNING_FLOPS = 2e13  # for all layers; it bounds how many ranks are tuned in each
TUNED_RANKS = 2  # in each layer, at most
SAVE_EVERY_S = 120.0
HEAD_TOKENS = 32_768  # from which predictors of heads are fitted
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
PRECISIONS = ("fp32", "bf16", "int8", "int4")


@dataclass(frozen=True)
class CalibrationOptions:
    """What to aim for, and by which means.

    `target_kld` is in nats per token; `max_predictor_share` bounds the predictors' bytes by the MLPs'.
    `sample_rows` bounds the rows kept of each layer, which are fewer in wide models.
    `predictor` names one kind for all layers that gain by it, "auto" the best for each. `heads` is the share
    of kv heads kept, the mean over layers, whatever it loses; "auto" the smallest that keeps the target.
    """

    target_kld: float = 0.001
    predictor: Literal["auto", "svd", "low-rank", "gate", "index"] = "auto"
    lookahead: Lookahead = Lookahead.SAME
    max_predictor_share: float = 1 / 12
    sample_rows: int = 8192
    validation_share: float = 0.1
    effort: Effort = EFFORT
    heads: float | Literal["auto"] = 1.0
    quiet: bool = False

    def __post_init__(self) -> None:
        """Refuse a target that no plan can meet or that means nothing, and a gate that looks ahead."""
        if not 0 < self.target_kld < 10:
            raise UsageError(f"--target-kld is {self.target_kld}; expected nats per token, between 0 and 10.")
        if self.heads != "auto" and not 0 < self.heads <= 1:
            raise UsageError(f"--heads is {self.heads}; expected a share of the heads, between 0 and 1.")
        if self.predictor == "gate" and self.lookahead is not Lookahead.SAME:
            raise UsageError(
                f"--predictor gate was asked with --lookahead {self.lookahead}; a gate is computed from the "
                "MLP's own input, expected same-layer."
            )

    def kinds(self, is_gated: bool) -> tuple[Kind, ...]:
        """Return the kinds to try, the closed forms first; raises UsageError for gates that are not there."""
        if self.predictor == "gate" and not is_gated:
            raise UsageError(
                "--predictor gate was asked of MLPs that have no gate; expected svd, low-rank, index or auto."
            )
        if self.predictor != "auto":
            return (self.predictor,)
        has_gate = is_gated and self.lookahead is Lookahead.SAME
        return ("svd", "gate", "low-rank") if has_gate else ("svd", "low-rank")


def calibrate(
    weights: Weights,
    model_hash: str,
    texts: Sequence[Int64[Tensor, " _"]],
    options: CalibrationOptions,
    partial: Path | None = None,
) -> Plan:
    """Return the plan with the fewest bytes per token whose divergence on held-out windows meets the target.

    Every tenth window of `texts` is held out for verification. Exact in what it computes: a plan only leaves
    neurons out. Costs one dense pass over the text, without the head, and less than that again for weighing
    and verifying. Memory is that of `observe` and does not grow with the text. `partial` is a folder for
    finished stages: a calibration that finds its own there goes on, and ends in the same plan. Warns, by
    `warnings`, of too little text and of layers that never or always fire. Raises UsageError for options
    that the model cannot meet and for another calibration's folder, ModelError for values not finite.
    """
    kinds = options.kinds(weights.config.is_gated)
    every = round(1 / options.validation_share)
    if len(texts) < every:
        raise UsageError(f"The text fills {len(texts)} windows; expected at least {every}. Give more --text.")
    validation = some(texts[every - 1 :: every], VALIDATION_TOKENS)
    training = [ids for i, ids in enumerate(texts) if i % every != every - 1]
    _warn(length_warnings(sum(len(ids) for ids in training), weights.config.width))
    text_hash = _text_hash(texts)
    stages = Stages(partial, _binding(weights, model_hash, text_hash, options))
    work = _Calibration(weights, options, kinds, stages)
    seen = work.observe(training)
    fits = work.fit(seen)
    prices = work.weigh(fits, training)
    work.show("held-out text, densely", len(validation))
    held = HeldOut(weights, validation, work.progress.update)
    if "low-rank" in kinds:
        fits = work.tune(fits, prices, seen)
    best, verified = work.verify(fits, prices, held)
    heads, measured = work.leave_out(best, verified, held, training)
    provenance = Provenance(
        model_hash=model_hash,
        text_hash=text_hash,
        lookahead=str(options.lookahead),
        predictor=options.predictor,
        target_kld=options.target_kld,
        measured_kld=measured.kld,
        measured_density=measured.overall.density,
        measured_recall=measured.overall.recall,
        validation_tokens=measured.tokens,
        measured_head_density=measured.head_density,
        # What was measured in fp32 holds for the others, which add their rounding; not the other way round.
        precisions=PRECISIONS if weights.dtype == torch.float32 else PRECISIONS[1:],
    )
    return Plan(provenance, tuple(c.predictor for c in best.choices), measured.layers, heads)


def _text_hash(texts: Sequence[Int64[Tensor, " _"]]) -> str:
    digest = hashlib.sha256()
    for ids in texts:
        digest.update(ids.numpy().tobytes())
    return digest.hexdigest()


def _binding(
    weights: Weights, model_hash: str, text_hash: str, options: CalibrationOptions
) -> dict[str, object]:
    # Heads come after all that is kept: nothing finished depends on them.
    said = {k: v for k, v in asdict(options).items() if k not in ("quiet", "heads")}
    return {"model": model_hash, "text": text_hash, "dtype": DTYPES[weights.dtype], **said}


def _warn(found: Sequence[str]) -> None:
    for message in found:
        warnings.warn(message, stacklevel=3)


class _Calibration:
    """The stages of one calibration, each taken over from `stages` where it is finished there."""

    def __init__(
        self, weights: Weights, options: CalibrationOptions, kinds: Sequence[Kind], stages: Stages
    ) -> None:
        self.weights = weights
        self.options = options
        self.kinds = kinds
        self.stages = stages
        self.full_bytes = sum(mlp_bytes(layer.mlp) for layer in weights.layers)
        self.show("", 1)

    def show(self, label: str, total: int, done: int = 0) -> None:
        """Begin a line of progress."""
        self.progress = Progress(label, total, quiet=self.options.quiet)
        self.progress.start_at(done)

    def observe(self, training: Sequence[Int64[Tensor, " _"]]) -> list[LayerInputs]:
        """Read the text; what was read is kept every two minutes."""
        n_tokens = sum(len(ids) for ids in training)
        fitting = max(SAMPLE_NUMBERS // self.weights.config.width, LEAST_SAMPLE_ROWS)
        rows = min(fitting, self.options.sample_rows)
        observer = Observer(self.weights, n_tokens, rows, self.options.lookahead)
        done = self._take_over(observer)
        self.show("reading the text", len(training), done)
        saved_s = time.monotonic()
        for number, ids in enumerate(training[done:], start=done + 1):
            observer.read(ids)
            is_due = number == len(training) or time.monotonic() - saved_s > SAVE_EVERY_S
            if is_due:
                kept = {
                    f"{i}.{k}": v for i, each in enumerate(observer.layers) for k, v in each.state().items()
                }
                self.stages.save("observed", kept, number)
                saved_s = time.monotonic()
            self.progress.update(number)
        return observer.layers

    def _take_over(self, observer: Observer) -> int:
        stage = self.stages.load("observed")
        if stage is None:
            return 0
        for index, layer in enumerate(observer.layers):
            stem = f"{index}."
            layer.restore({k.removeprefix(stem): v for k, v in stage.tensors.items() if k.startswith(stem)})
        return int(stage.said)

    def fit(self, seen: Sequence[LayerInputs]) -> list[tuple[Choice, ...]]:
        """Return the settings of the closed forms, layer by layer; the moments are needed no longer."""
        forms: list[Kind] = [kind for kind in self.kinds if kind != "low-rank"] or ["svd"]
        self.show("fitting predictors", len(seen))
        fits = []
        for index, (layer, inputs) in enumerate(zip(self.weights.layers, seen, strict=True)):
            name = f"fit-{index:03d}"
            stage = self.stages.load(name)
            if stage is None:
                few = torch.arange(inputs.n_sampled) < LABEL_ROWS
                odd = label_warnings(index, layer, labelled(layer, inputs, few).energy)
                _warn(odd)
                fits.append(
                    (dense_choice(layer),) if odd else frontier(layer, inputs, forms, self.options.lookahead)
                )
                self.stages.save(name, *packed(fits[-1]))
            else:
                fits.append(unpacked(stage))
            inputs.forget_moments()
            self.progress.update(index + 1)
        return fits

    def weigh(self, fits: Sequence[Sequence[Choice]], training: Sequence[Int64[Tensor, " _"]]) -> list[float]:
        """Return, per layer, the divergence in nats that one unit of its local loss causes."""
        stage = self.stages.load("prices")
        prices: list[float] = [] if stage is None else list(stage.said)
        self.show("weighing layers", len(fits), len(prices))
        if len(prices) == len(fits):
            return prices
        probe = HeldOut(self.weights, self._probes(training), lambda done: None)
        for index in range(len(prices), len(fits)):
            choice = typical(fits[index])
            alone = [choice.predictor if i == index else None for i in range(len(fits))]
            nats = probe.measure(alone).kld if choice.loss > 0 else 0.0
            prices.append(nats / choice.loss if choice.loss > 0 else 0.0)
            self.stages.save("prices", {"count": torch.tensor(len(prices))}, prices)
            self.progress.update(index + 1)
        return prices

    def _probes(self, training: Sequence[Int64[Tensor, " _"]]) -> list[Int64[Tensor, " _"]]:
        """Return the beginnings of a few windows, short enough that all layers can be weighed on them."""
        n_tokens = sum(len(ids) for ids in training)
        wanted = max(WEIGHING_SHARE * n_tokens / (len(self.weights.layers) + 1), PROBE_TOKENS)
        n_windows = min(max(int(wanted // PROBE_TOKENS), 1), PROBE_WINDOWS, len(training))
        length = int(wanted // n_windows)
        places = torch.linspace(0, len(training) - 1, n_windows).long().tolist()
        return [training[place][:length] for place in places]

    def tune(
        self, fits: Sequence[Sequence[Choice]], prices: Sequence[float], seen: Sequence[LayerInputs]
    ) -> list[tuple[Choice, ...]]:
        """Return the settings with those of fitted predictors added, or in place of the closed forms.

        What is fitted are the ranks that read the least at the exchange rate which the closed forms ask.
        """
        at = self._ladders(fits, prices).choose(AIM * MARGIN * self.options.target_kld)
        self.show("tuning predictors", len(fits))
        found = []
        for index, (choices, price) in enumerate(zip(fits, prices, strict=True)):
            name = f"tuned-{index:03d}"
            stage = self.stages.load(name)
            if stage is None:
                made = self._tuned(index, _starts(choices, at, price), at.rate * price, seen[index])
                self.stages.save(name, *packed(made))
            else:
                made = unpacked(stage)
            kept = choices if self.options.predictor == "auto" else choices[:1]
            found.append((*kept, *made))
            self.progress.update(index + 1)
        return found

    def _tuned(
        self, index: int, starts: Sequence[LowRankPredictor], worth_bytes: float, inputs: LayerInputs
    ) -> list[Choice]:
        """Fit the predictors of one layer; `worth_bytes` is what a unit of its loss may cost."""
        layer, effort = self.weights.layers[index], self.options.effort
        if not starts or worth_bytes <= 0:
            return []
        held = held_out(inputs.n_sampled)
        fitted, judged = labelled(layer, inputs, ~held), labelled(layer, inputs, held)
        spent, made = 0.0, []
        for start in starts:
            flops = effort.flops(start.rank, layer.mlp.width, layer.mlp.n_neurons)
            spent += flops * len(self.weights.layers)
            if made and spent > TUNING_FLOPS:
                break
            worth = worth_bytes * layer.mlp.n_neurons / mlp_bytes(layer.mlp)
            made.append(tuned(start, fitted, worth, effort, seed=index))
        return [choice for predictor in made for choice in tuned_choices(layer, predictor, judged)]

    def _ladders(self, fits: Sequence[Sequence[Choice]], prices: Sequence[float]) -> Ladders:
        return Ladders(fits, prices, self.options.max_predictor_share * self.full_bytes)

    def verify(
        self, fits: Sequence[Sequence[Choice]], prices: Sequence[float], held: HeldOut
    ) -> tuple[Chosen, Measured]:
        """Return the cheapest settings that hold on `held`, and what was measured; all dense if none does."""
        wanted = self.options.target_kld * MARGIN
        ladders, budget = self._ladders(fits, prices), AIM * wanted
        stage = self.stages.load("verified")
        kept: list[list] = [] if stage is None else list(stage.said)
        best: tuple[Chosen, Measured] | None = None
        self.show("verifying plans", PROBES, len(kept))
        for number in range(2 * PROBES):
            chosen = ladders.choose(budget)
            if number < len(kept):
                measured = Measured.of_list(kept[number])
            else:
                measured = held.measure([c.predictor for c in chosen.choices])
                kept.append(measured.listed)
                self.stages.save("verified", {"count": torch.tensor(len(kept))}, kept)
            if measured.kld <= wanted and (best is None or chosen.n_bytes < best[0].n_bytes):
                best = chosen, measured
            note = f"KLD {measured.kld:.2g}, density {measured.overall.density:.3f}"
            self.progress.update(min(number + 1, PROBES), note)
            is_near = NEAR_ENOUGH * wanted <= measured.kld <= wanted
            if is_near or (best is not None and number + 1 >= PROBES):
                break
            budget *= min(max(AIM * wanted / max(measured.kld, 1e-12), 0.2), 5.0)
        if best is None:
            chosen = ladders.choose(0.0)
            best = chosen, held.measure([c.predictor for c in chosen.choices])
        return best

    def leave_out(
        self, best: Chosen, verified: Measured, held: HeldOut, training: Sequence[Int64[Tensor, " _"]]
    ) -> tuple[tuple[HeadPredictor | None, ...], Measured]:
        """Return predictors of heads, none where none are wanted or none hold, and what was measured of all.

        With "auto" the whole plan is held to the target itself: what `MARGIN` left of it, heads may spend.
        """
        if self.options.heads == 1:
            return (), verified
        texts = some(training, HEAD_TOKENS)
        self.show("fitting heads", len(texts))
        fits = fit_heads(self.weights, texts, self.progress.update)
        self.show("weighing heads", len(fits))
        probe = HeldOut(self.weights, self._probes(training), lambda done: None)
        ladder = HeadLadder(fits, probe, self.progress.update)
        self.show("leaving heads out", HEAD_TRIES)

        def measure(heads: Sequence[HeadPredictor | None]) -> Measured:
            return held.measure([c.predictor for c in best.choices], heads)

        if self.options.heads != "auto":
            heads = ladder.keeping(self.options.heads)
            return heads, measure(heads)
        return ladder.fewest(measure, self.options.target_kld, self.progress.update) or ((), verified)


def _starts(choices: Sequence[Choice], at: Chosen, price: float) -> list[LowRankPredictor]:
    """Return what to fit further in one layer: the rank that reads the least, and the best of the lower ones.

    Predictors count at the surcharge that kept the closed forms within their share: fitted ones of other
    ranks would not fit beside each other. The lower rank is there since a fitted predictor needs less of it.
    """
    found: list[LowRankPredictor] = []
    surcharge, rate = at.surcharge, at.rate * price
    for each in sorted(choices, key=lambda c: c.n_bytes + surcharge * c.predictor_bytes + rate * c.loss):
        start = each.predictor
        if isinstance(start, LowRankPredictor) and (not found or start.rank < found[-1].rank):
            found.append(start)
    return found[:TUNED_RANKS]
