"""Audit: maps of an unknown text in, a finding with its controls out.   (floor 5 · audit)"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from winnow.audit.attention.beam import Decoded
from winnow.audit.attention.causal import decode_causal
from winnow.audit.attention.dump import check_maps, per_layer
from winnow.audit.attention.encoder import decode_encoder
from winnow.audit.attention.exposure import EXPOSURES, Exposure, Precision, precision
from winnow.audit.attention.first_layer import FirstLayer
from winnow.audit.attention.prefix import decode_prefix
from winnow.audit.attention.rows import Shown
from winnow.audit.report import Bar, Bars, Controls, Finding, Recovered, Table
from winnow.base.errors import ModelError, UsageError
from winnow.base.rng import generator

PLANTED = 12  # tokens of the controls
EXPOSED = 16  # and of the text that is shown in every way
FOUND = 0.9  # share of planted tokens that a decoder which works reads back: equal embeddings exist
DECADES = 8
DOES_NOT_SHOW = (
    "Nothing here says how maps are protected, who can read them, or that other channels (logits, hidden "
    "states, caches, timing) are closed.",
    "A text that was not read back from these maps may be read back by a better search, by a prior on "
    "language, or from more layers: a failure of this audit is no proof of privacy.",
    "Weights that differ from the given ones, by fine-tuning say, make maps that this model does not "
    "explain.",
)


@final
@dataclass(frozen=True)
class Known:
    """What the reader of the maps knows or is told, beside the weights.

    `layer` of the maps; `top_k` where only a row's largest entries were kept; `first` token; `anchors`, first
    and last token of an encoder's text; `likeliest`, see `decode_prefix`; `stored`, the file's type.
    """

    layer: int = 0
    top_k: int | None = None
    first: int | None = None
    anchors: tuple[int, int] | None = None
    likeliest: int | None = None
    stored: torch.dtype = torch.float32


def attention(  # noqa: PLR0913 (a public verb: the names its users expect)
    model: nn.Module,
    maps: Tensor,
    *,
    layer: int = 0,
    top_k: int | None = None,
    first: int | None = None,
    anchors: tuple[int, int] | None = None,
    likeliest: int | None = None,
    stored: torch.dtype = torch.float32,
    truth: Sequence[int] | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    exposures: bool = False,
    rng: int = 0,
) -> Finding:
    """Read the tokens back from `maps`, attention probabilities of `model` on an unknown text.

    `maps` are (heads, T, T), one map averaged over heads, or more axes as in `per_layer`. Without `truth`,
    `exact_match` is 1 only where the model, run on the tokens found, makes the shown maps to the last digit
    shown and no token has an equal. With `exposures` a planted text is also shown in every other way, from
    fp32 to two decimals, averages and grey levels. `rng` seeds the controls: a planted text that must be read
    back, and random maps that no text may explain. Costs: see `decode_causal`, `decode_encoder`,
    `decode_prefix`. Raises ModelError for maps that this model cannot have made and for models of unknown
    kind, UsageError where the first token must be named. After arXiv:2310.12462 (abstract), construction
    ours.
    """
    known = Known(layer, top_k, first, anchors, likeliest, stored)
    with torch.no_grad(), _eager(model):
        return _audit(model, maps, known, truth, decode, exposures, generator(rng))


def _audit(
    model: nn.Module,
    maps: Tensor,
    known: Known,
    truth: Sequence[int] | None,
    decode: Callable[[Sequence[int]], str] | None,
    exposures: bool,
    rng: torch.Generator,
) -> Finding:
    started = time.perf_counter()
    first_layer = FirstLayer(model)
    shown = _shown(maps, known, first_layer)
    decoded = _decode(first_layer, shown, known)
    remade = _remade(model, decoded, shown, known)
    tokens = decoded.tokens.tolist()
    is_right = decoded.is_explained if truth is None else decoded.tokens == torch.tensor(list(truth))
    is_whole = bool(is_right.all()) and (truth is not None or (decoded.is_whole and remade <= 1.5))
    controls = _controls(first_layer, shown, known, rng)
    text = " ".join(map(str, tokens)) if decode is None else decode(tokens)
    rows = _exposed(first_layer, known, rng) if exposures and known.layer == 0 else ()
    return Finding(
        audit="attention",
        subject=f"attention maps of layer {known.layer}, {shown.n} tokens, {_name(shown)}",
        verdict=_verdict(shown, is_whole, float(is_right.float().mean())),
        exact_match=float(is_whole),
        token_recall=float(is_right.float().mean()),
        seconds=time.perf_counter() - started,
        controls=controls,
        certificate={
            "largest_deviation_of_remade_maps_in_slacks": remade,
            "rows_explained": int(decoded.is_explained.sum()),
            "rows": shown.n,
            "least_margin": _rounded(float(decoded.margins.min())),
            "median_margin": _rounded(float(decoded.margins.median())),
        },
        does_not_show=DOES_NOT_SHOW,
        recovered=(Recovered("text behind the maps", shown.n, text, tuple(tokens)),),
        tables=(_table(rows),) if rows else (),
        plots=(_margins(decoded), *((_recalls(rows),) if rows else ())),
        details={
            "heads shown": shown.maps.shape[0],
            "precision": shown.precision.name,
            "slack relative": shown.precision.relative,
            "slack absolute": shown.precision.absolute,
            "truth known": truth is not None,
            "first token given": known.first is not None or known.anchors is not None,
        },
    )


def _shown(maps: Tensor, known: Known, first_layer: FirstLayer) -> Shown:
    """Check the maps and say what is shown. Raises ModelError."""
    config = first_layer.model.config
    chosen = per_layer(maps, known.layer, getattr(config, "num_hidden_layers", 1)).float()
    is_partial = known.top_k is not None
    read = precision(chosen, known.stored) if bool(torch.isfinite(chosen).all()) else Precision("fp32")
    largest = float(read.slack(torch.ones(1)))
    check_maps(chosen, largest, is_causal=first_layer.is_causal, is_partial=is_partial)
    n_heads = first_layer.n_heads
    if chosen.shape[0] not in (1, n_heads):
        raise ModelError(
            f"the maps have {chosen.shape[0]} heads; expected {n_heads}, or 1 for their average. Check MODEL."
        )
    longest = getattr(config, "max_position_embeddings", chosen.shape[-1])
    if chosen.shape[-1] > longest:
        raise ModelError(f"the maps cover {chosen.shape[-1]} tokens; expected at most the model's {longest}.")
    return Shown(chosen, read, is_averaged=chosen.shape[0] == 1 and n_heads > 1, is_partial=is_partial)


def _decode(first_layer: FirstLayer, shown: Shown, known: Known) -> Decoded:
    if not first_layer.is_causal:
        if known.layer != 0:
            raise UsageError(
                f"layer {known.layer} of an encoder depends on all tokens at once; expected layer 0."
            )
        if known.anchors is None:
            raise UsageError(
                "an encoder is read from its first and last token; expected both. Name them with anchors "
                "(--anchors ID,ID)."
            )
        return decode_encoder(first_layer, shown, known.anchors)
    if known.layer == 0:
        return decode_causal(first_layer, shown, first=known.first)
    return decode_prefix(first_layer.model, shown, known.layer, first=known.first, likeliest=known.likeliest)


def _maps_of(model: Any, tokens: Int64[Tensor, " T"], layer: int) -> Float[Tensor, "H T T"]:
    made = model(input_ids=tokens[None], output_attentions=True).attentions
    return made[layer][0]


def _remade(model: nn.Module, decoded: Decoded, shown: Shown, known: Known) -> float:
    """Return the largest deviation, in slacks, of the maps that the model makes of the tokens found."""
    if int(decoded.tokens.min()) < 0:
        return 0.0
    rows = _maps_of(model, decoded.tokens, known.layer).unbind(1)
    worsts = [shown.compare(row[None], shown.maps[:, place])[1] for place, row in enumerate(rows)]
    return float(torch.cat(worsts).max())


def _controls(first_layer: FirstLayer, shown: Shown, known: Known, rng: torch.Generator) -> Controls:
    """Read a planted text from its full maps, and look for one in random maps shown as the subject is."""
    tokens = torch.randint(first_layer.n_tokens, (PLANTED,), generator=rng)
    told = Known(known.layer, None, int(tokens[0]), (int(tokens[0]), int(tokens[-1])), known.likeliest)
    planted = Shown(_maps_of(first_layer.model, tokens, known.layer), Precision("fp32"))
    found = _decode(first_layer, planted, told)
    recall = float((found.tokens == tokens).float().mean())
    noise = torch.rand(shown.maps.shape[0], PLANTED, PLANTED, generator=rng)
    noise = (noise.tril() if first_layer.is_causal else noise).add(torch.eye(PLANTED) * 1e-3)
    noise = Exposure(shown.precision.name if shown.precision.name != "fp32" else "fp32").show(
        noise / noise.sum(-1, keepdim=True)
    )
    blank = Shown(noise, shown.precision, shown.is_averaged, shown.is_partial)
    if shown.is_averaged and not first_layer.is_causal:
        return Controls(recall >= FOUND, noise_found=False)
    in_noise = _decode(first_layer, blank, told)
    share = float(in_noise.is_explained[1:].float().mean())
    return Controls(
        recall >= FOUND,
        noise_found=in_noise.is_whole,
        notes=(
            f"planted: {PLANTED} random tokens, the model's own maps of them in fp32; "
            f"{100 * recall:.0f} % read back",
            f"noise: random stochastic maps of {PLANTED} tokens, shown as the subject is; "
            f"{100 * share:.0f} % of the rows explained",
        ),
    )


def _name(shown: Shown) -> str:
    heads = "averaged over heads" if shown.is_averaged else f"{shown.maps.shape[0]} heads"
    return f"{heads}{', largest entries only' if shown.is_partial else ''}, {shown.precision.name}"


def _verdict(shown: Shown, is_whole: bool, recall: float) -> str:
    """Say what maps so shown give away, by what was read from these."""
    if is_whole:
        return "equivalent to the text: with the public weights, every token was read back from the maps"
    if recall > 0.5:
        return f"partial leak: {100 * recall:.0f} % of the tokens explain what was shown of them"
    if shown.is_averaged or shown.is_partial:
        return "the text was not read back from these maps; its length and its repetitions are in them"
    return "the text was not read back; these maps may be of another model, or too coarse for this one"


def _rounded(margin: float) -> float:
    """One digit: a margin to the last digit would tell which token it belongs to."""
    return float(f"{margin:.0e}")


def _margins(decoded: Decoded) -> Bars:
    decades = decoded.margins.clamp(1, 10.0**DECADES).log10().floor().long()
    counts = torch.bincount(decades, minlength=DECADES + 1)[: DECADES + 1].tolist()
    bars = tuple(Bar(_decade(d), n, kind="safe" if d == 0 else "leak") for d, n in enumerate(counts) if n)
    return Bars("Margins: second best error over best", "tokens", bars, most=max(counts))


def _decade(d: int) -> str:
    return f"1e{d} or more" if d == DECADES else f"{10**d:,} to {10 ** (d + 1):,}"


def _exposed(first_layer: FirstLayer, known: Known, rng: torch.Generator) -> tuple[tuple, ...]:
    """Show a planted text in every way and read it back; the first token is told."""
    tokens = torch.randint(first_layer.n_tokens, (EXPOSED,), generator=rng)
    told = Known(0, None, int(tokens[0]), (int(tokens[0]), int(tokens[-1])))
    maps = _maps_of(first_layer.model, tokens, 0)
    rows = []
    for exposure in EXPOSURES:
        if exposure.is_averaged and not first_layer.is_causal:
            rows.append((exposure.name, None, None, "not tried: two equations per token"))
            continue
        seen = exposure.show(maps)
        shown = Shown(seen, precision(seen), exposure.is_averaged, exposure.top_k is not None)
        decoded = _decode(first_layer, shown, told)
        recall = float((decoded.tokens == tokens).float().mean())
        rows.append((exposure.name, recall, _rounded(float(decoded.margins[1:].median())), _said(recall)))
    return tuple(rows)


def _said(recall: float) -> str:
    if recall == 1.0:
        return "equivalent to the text"
    return "partial" if recall > 0.1 else "structure and length only"


def _table(rows: tuple[tuple, ...]) -> Table:
    return Table(
        "A planted text shown in other ways", ("shown", "tokens read", "median margin", "verdict"), rows
    )


def _recalls(rows: tuple[tuple, ...]) -> Bars:
    bars = tuple(
        Bar(name, recall, kind="leak" if recall > 0.1 else "safe")
        for name, recall, *_ in rows
        if recall is not None
    )
    return Bars("Tokens read of a planted text, by what is shown", "share of tokens", bars)


class _eager:
    """Let `model` compute attention so that maps are there, in evaluation mode, and put back what was."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> None:
        config = getattr(self.model, "config", None)
        self.before = getattr(config, "_attn_implementation", None)
        self.was_training = self.model.training
        self.model.eval()
        if config is not None and self.before is not None:
            config._attn_implementation = "eager"

    def __exit__(self, *_: object) -> None:
        self.model.train(self.was_training)
        if self.before is not None:
            self.model.config._attn_implementation = self.before
