"""Attack: an encoder's texts from its gradient, with a certificate.   (floor 5 · audit)

    tokens, spans -> pairs of token and position -> texts -> classes and weights from the head -> certificate

Batch 1 needs no search: each position has one pair. After arXiv:2311.13624 (abstract), construction ours.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from winnow.audit.encoders.assign import Board, one_text
from winnow.audit.encoders.pairs import Pairs, find_pairs
from winnow.audit.encoders.task import Classifier
from winnow.audit.families import check_vocabulary
from winnow.audit.front import Front
from winnow.audit.leakage.attack import Recovery
from winnow.audit.leakage.batches import stacked
from winnow.audit.leakage.spans import Span, read_span
from winnow.base.errors import ModelError
from winnow.base.rng import generator

MOST_STARTS = 48
MOST_PAIRS = 512  # a start costs their square
WHOLE = 0.05  # how far a ratio of weights may be from a whole number


def encoder_attack(
    model: nn.Module, gradients: Mapping[str, Tensor], *, noise: float | None = None, longest: int = 512
) -> Recovery:
    """Return the texts that made `gradients`, by names of ``model.named_parameters()``.

    `model` is a `Classifier`, or a bare encoder, whose loss is not known: then nothing is certified. `noise`
    and `longest` as in `span_attack`. Exact for one text shorter than the width; for several, as far as
    starts find them: at most `MOST_STARTS` of them, none above `MOST_PAIRS` pairs. Texts of different
    lengths are told apart by the token that ends the longest one. Costs two eigenproblems of width D and per
    start 60 products of all pairs by all pairs. Raises ModelError for causal models.
    """
    started = time.perf_counter()
    front = Front.of(model)
    check_vocabulary(front.layout, front.parameters)
    if front.layout.is_causal:
        raise ModelError("the model is causal; expected BERT. The span attack reads it.")
    layer = front.layout.layers[0]
    spans = []
    for maps, what in ((layer.reads, "query, key and value"), (layer.mlp, "MLP")):
        matrix = stacked(gradients, maps)
        if matrix is None:
            return _nothing(f"the gradient of layer 0's {what} maps is not there", (), started)
        spans.append(read_span(matrix, noise))
    ranks = tuple(span.rank for span in spans)
    if min(ranks) == 0:
        return _nothing("no direction of layer 0's gradients stands above the noise", ranks, started)
    if spans[1].is_saturated:
        return _nothing(
            f"saturated: the first MLP's inputs fill all {front.width} dimensions", ranks, started
        )
    pairs = find_pairs(front, spans[0], gradients, longest)
    search = _Search(front, spans[1], pairs)
    with torch.no_grad():
        texts, n_starts, reason = search.texts()
    texts, certificate = _certified(model, texts, gradients)
    return Recovery(
        tuple(sorted(texts)),
        bool(texts),
        certificate,
        ranks,
        len(pairs.tokens),
        n_starts,
        time.perf_counter() - started,
        reason,
    )


@final
@dataclass(frozen=True)
class _Search:
    """Texts out of pairs, one start after the other."""

    front: Front
    span: Span
    pairs: Pairs

    def texts(self) -> tuple[list[tuple[int, ...]], int, str]:
        """Return the texts, how many starts they took, and why some may be missing."""
        pairs = self.pairs
        if not len(pairs.tokens):
            return [], 0, "no token's input lies in the span of the first maps"
        if len(pairs.tokens) > MOST_PAIRS:
            return [], 0, f"{len(pairs.tokens)} pairs are possible, expected at most {MOST_PAIRS}"
        board = Board.of(self.front, self.span, pairs)
        lengths = self._lengths()
        covered = torch.zeros(len(pairs.tokens), dtype=torch.bool)
        found: list[tuple[int, ...]] = []
        n_starts = 0
        for held in self._order():
            if covered[held] or n_starts >= MOST_STARTS:
                continue
            for n, closing in lengths:
                if n <= int(pairs.positions[held]) or n_starts >= MOST_STARTS:
                    continue
                cut, kept = board.of_length(n, closing)
                if not bool((kept == held).any()):
                    continue
                n_starts += 1
                place = int((kept == held).nonzero())
                explained = covered[kept].nonzero().squeeze(1)
                text = one_text(cut, place, explained, n * len(pairs.tokens) * MOST_STARTS)
                if text is not None:
                    covered[kept[text]] = True
                    found.append(tuple(pairs.tokens[kept[text]].tolist()))
                    break
        open_pairs = bool((pairs.is_sure & ~covered).any())
        reason = "" if found and not open_pairs else f"{n_starts} starts did not explain all tokens"
        return list(dict.fromkeys(found)), n_starts, reason

    def _order(self) -> list[int]:
        """Return entries to hold, in turn: those that are sure, or all where none is."""
        mixed = torch.randperm(len(self.pairs.tokens), generator=generator(0))
        sure = self.pairs.is_sure[mixed]
        return (mixed[sure] if bool(sure.any()) else mixed).tolist()

    def _lengths(self) -> list[tuple[int, Int64[Tensor, " _"] | None]]:
        """Return possible lengths, longest first, with the entries that end a text.

        Tokens that end the longest text end others too (BERT's closing mark). Where these stand nowhere
        else, texts may end wherever fewer pairs follow.
        """
        pairs, n = self.pairs, self.pairs.n_positions
        closing = torch.isin(pairs.tokens, pairs.tokens[pairs.at(n - 1)]).nonzero().squeeze(1)
        ends = pairs.positions[closing].unique().flip(0).tolist()
        if len(ends) > 1 or len(pairs.tokens) == n:
            return [(end + 1, closing) for end in ends]
        counts = torch.bincount(pairs.positions, minlength=n + 1)
        fewer = (counts[1:] < counts[:-1]).nonzero().squeeze(1).flip(0).tolist()
        return [(end + 1, None) for end in fewer]


def _certified(
    model: nn.Module, texts: list[tuple[int, ...]], gradients: Mapping[str, Tensor]
) -> tuple[list[tuple[int, ...]], float | None]:
    """Return `texts` as often as they occur, and the relative error of the gradient that they make."""
    if not texts or not isinstance(model, Classifier) or "head.weight" not in gradients:
        return texts, None
    with torch.no_grad():
        states = model.states_of(texts)
        chances = model.head(states).softmax(1).double()
    classes, weights = _labels(states.double(), chances, gradients["head.weight"].double())
    if not bool((weights > 0).all()):
        return texts, None
    made = model.weighted_gradients(texts, classes.tolist(), weights.float())
    named = [name for name in made if name in gradients]
    off = sum(float((made[n] - gradients[n]).double().square().sum()) for n in named)
    whole = sum(float(gradients[n].double().square().sum()) for n in named)
    ratios = weights / weights.min()
    if bool(((ratios - ratios.round()).abs() < WHOLE).all()):
        texts = [
            text
            for text, times in zip(texts, ratios.round().int().tolist(), strict=True)
            for _ in range(times)
        ]
    return texts, (off / whole) ** 0.5 if whole else 1.0


def _labels(
    states: Float[Tensor, "B D"], chances: Float[Tensor, "B classes"], head: Float[Tensor, "classes D"]
) -> tuple[Int64[Tensor, " B"], Float[Tensor, " B"]]:
    """Return each text's class and weight in the loss, from the head's gradient sum_b w_b (p_b - 1_y) h_b^T.

    The states are known and far fewer than their width: the coefficients follow exactly, and the one below 0
    is the class.
    """
    coefficients = (head @ torch.linalg.pinv(states)).mT  # (B, classes)
    classes = coefficients.argmin(1)
    rows = torch.arange(len(classes))
    return classes, -coefficients[rows, classes] / (1 - chances[rows, classes]).clamp(min=1e-12)


def _nothing(reason: str, ranks: tuple[int, ...], started: float) -> Recovery:
    return Recovery((), False, None, ranks, 0, 0, time.perf_counter() - started, reason)
