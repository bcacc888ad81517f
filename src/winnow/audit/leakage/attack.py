"""Attack: texts from gradients, exactly, with a certificate.   (floor 5 · audit)

    spans of the first layer's inputs -> tokens per position -> texts -> ends, last tokens -> certificate

The certificate is the relative error of the gradient that the found texts make: near rounding, it shows
without the truth that they are the texts. After arXiv:2311.13624 (abstract), construction ours.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from winnow.audit.families import check_vocabulary
from winnow.audit.front import Front
from winnow.audit.leakage.batches import error_of, stacked
from winnow.audit.leakage.candidates import Filter
from winnow.audit.leakage.ends import end_texts, plain_texts
from winnow.audit.leakage.search import Tree, grow
from winnow.audit.leakage.spans import Span, read_span
from winnow.base.errors import ModelError, ResourceError

BLOCK = 32  # positions filtered at a time, where their number is not known
CERTIFIED = 1e-2  # relative error up to which found texts count as shown


@final
@dataclass(frozen=True)
class Recovery:
    """What an attack found. `certificate` is a relative error, None where no gradient could be recomputed.

    `reason` says in one sentence why nothing, or not all, was found; "" where nothing stood in the way.
    `n_candidates` are (token, position) pairs, `n_tried` rows of the search. `is_complete` is False where
    positions or tokens have a gradient that no found text explains.
    """

    texts: tuple[tuple[int, ...], ...]
    has_last_tokens: bool
    certificate: float | None
    ranks: tuple[int, ...]
    n_candidates: int
    n_tried: int
    seconds: float
    reason: str
    is_complete: bool = True

    @property
    def is_certified(self) -> bool:
        """Whether the found texts make the observed gradient and explain all of its rows."""
        return self.is_complete and self.certificate is not None and self.certificate <= CERTIFIED


@runtime_checkable
class Attack(Protocol):
    """What reads texts from gradients; `span_attack` is one."""

    def __call__(
        self,
        model: nn.Module,
        gradients: Mapping[str, Tensor],
        *,
        noise: float | None = None,
        longest: int = 512,
    ) -> Recovery:
        """Return the texts that made `gradients`."""
        ...


def span_attack(
    model: nn.Module, gradients: Mapping[str, Tensor], *, noise: float | None = None, longest: int = 512
) -> Recovery:
    """Return the texts that made `gradients`, by names of ``model.named_parameters()``.

    `model` is a causal model of transformers with the weights that the gradients belong to; `noise` is what
    was added to each entry, where known; texts are at most `longest` tokens. Exact where the distinct inputs
    are fewer than the width and the gradients are as computed; never more certain than its certificate.
    Costs two eigenproblems of width D, a product of V by D by the rank, and a forward and backward pass over
    the found texts. Raises ModelError for models whose first layer is not read so.
    """
    started = time.perf_counter()
    front = Front.of(model)
    check_vocabulary(front.layout, front.parameters)
    if not front.layout.is_causal:
        raise ModelError("the span attack reads causal models; expected GPT-2, OPT, Llama or Qwen.")
    spans = _spans(front, gradients, noise)
    if isinstance(spans, str):
        return _nothing(spans, (), started)
    ranks = tuple(span.rank for span in spans)
    for span, what in zip(spans, ("attention", "MLP"), strict=True):
        if span.rank == 0:
            return _nothing(
                f"no direction of the first {what}'s gradient stands above the noise", ranks, started
            )
        if span.is_saturated:
            return _nothing(
                f"saturated: the first {what}'s inputs fill all {span.width} dimensions", ranks, started
            )
    candidates = _candidates(front, spans[0], gradients, longest)
    try:
        tree = grow(front, spans[1], candidates)
    except ResourceError as error:
        return _nothing(str(error), ranks, started)
    return _ended(model, front, tree, gradients, ranks, sum(map(len, candidates)), started)


def _spans(front: Front, gradients: Mapping[str, Tensor], noise: float | None) -> tuple[Span, Span] | str:
    layer = front.layout.layers[0]
    found = []
    for maps, what in ((layer.reads, "query, key and value"), (layer.mlp, "MLP")):
        matrix = stacked(gradients, maps)
        if matrix is None:
            return f"the gradient of layer 0's {what} maps is not there"
        found.append(read_span(matrix, noise))
    return found[0], found[1]


def token_rows(front: Front, gradients: Mapping[str, Tensor]) -> Int64[Tensor, " N"] | None:
    """Return the tokens whose embeddings have a gradient: exactly those of the texts.

    None where that tells nothing: the embedding is frozen, or tied to the head, or noise fills all rows.
    """
    if front.layout.is_tied or front.layout.tokens not in gradients:
        return None
    used = (gradients[front.layout.tokens] != 0).any(1)
    return None if bool(used.all()) else used.nonzero().squeeze(1)


def position_rows(front: Front, gradients: Mapping[str, Tensor]) -> int | None:
    """Return how many positions have a gradient, all but the last token's; None where that tells nothing."""
    name = front.layout.positions
    if name is None or name not in gradients:
        return None
    used = (gradients[name] != 0).any(1)
    return None if bool(used.all()) else int(used.nonzero().max()) + 1 - front.layout.position_offset


def _candidates(
    front: Front, span: Span, gradients: Mapping[str, Tensor], longest: int
) -> list[Int64[Tensor, " _"]]:
    """Return the tokens that may stand at each position, up to the first where none may."""
    tokens = token_rows(front, gradients)
    tokens = torch.arange(front.n_tokens) if tokens is None else tokens
    n_positions = position_rows(front, gradients) or min(longest, front.n_positions or longest)
    pairs = Filter(front, span)
    if front.position_rows(torch.arange(1)) is None:
        return pairs.candidates(torch.arange(n_positions), tokens)
    found: list[Tensor] = []
    for block in torch.arange(n_positions).split(BLOCK):
        found += pairs.candidates(block, tokens)
        if not len(found[-1]):
            break
    return found


def _ended(
    model: nn.Module,
    front: Front,
    tree: Tree,
    gradients: Mapping[str, Tensor],
    ranks: tuple[int, ...],
    n_candidates: int,
    started: float,
) -> Recovery:
    ended = end_texts(model, front.layout, tree, gradients)
    certificate = None if ended is None else error_of(ended.gradients, gradients)
    reason = "" if tree.tokens else "no text's inputs lie in the spans"
    if tree.tokens and ended is None:
        reason = "the head's gradient does not tell the ends: last tokens and repetitions are not known"
    if not reason and certificate is not None and certificate > CERTIFIED:
        reason = f"the texts found make a gradient off by {certificate:.1g}: not all of them are shown"
    missing = _unreached(front, tree, gradients)
    reason = missing if tree.tokens and missing else reason
    return Recovery(
        plain_texts(tree) if ended is None else ended.texts,
        ended is not None,
        certificate,
        ranks,
        n_candidates,
        tree.tried,
        time.perf_counter() - started,
        reason,
        is_complete=not missing,
    )


def _unreached(front: Front, tree: Tree, gradients: Mapping[str, Tensor]) -> str:
    """Say which positions or tokens have a gradient that no text of `tree` explains; "" for none.

    Rows of an embedding are sums of their own tokens alone: they show what is lost in the rounding of a map's
    gradient, as where the model is all but certain of a last token.
    """
    reached = max((len(tree.path(leaf)) for leaf in tree.leaves), default=0)
    n_positions = position_rows(front, gradients) or reached
    if reached < n_positions:
        return (
            f"{n_positions} positions have a gradient, the texts found reach {reached}: what stands behind "
            "is below the rounding of the first layer's gradient"
        )
    tokens = token_rows(front, gradients)
    lost = set() if tokens is None else set(tokens.tolist()) - set(tree.tokens)
    if lost:
        return (
            f"{len(lost)} tokens have a gradient and stand in no text found: their inputs are below the "
            "rounding of the first layer's gradient"
        )
    return ""


def _nothing(reason: str, ranks: tuple[int, ...], started: float) -> Recovery:
    return Recovery((), False, None, ranks, 0, 0, time.perf_counter() - started, reason)
