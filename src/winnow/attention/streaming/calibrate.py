"""Calibrate: which budget each kv head needs, by its error on real keys and values.   (floor 4 · attention)

For each head and candidate the whole stream is read once and compared with exact attention. Nothing is
fitted: what counts is the error of the output itself, relative to its size, over all positions at which some
candidate has absorbed a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.attention.exact import softmax
from winnow.attention.streaming.kind import Streaming
from winnow.attention.streaming.options import StreamingOptions
from winnow.attention.streaming.per_head import PerHead
from winnow.base.errors import UsageError


@final
@dataclass(frozen=True)
class Calibration:
    """What each candidate costs and loses per kv head, and which one each head gets.

    An error is |o - exact| / |exact|, Euclidean norms over all counted queries of the head's group. It holds
    for the text that was measured; another text may need more.
    """

    candidates: tuple[StreamingOptions, ...]
    error: Float[Tensor, "K candidates"]
    n_bytes: tuple[int, ...]  # of each candidate, per kv head
    chosen: tuple[int, ...]  # the candidate of each kv head
    is_met: tuple[bool, ...]  # whether the head keeps the target; always with a budget of bytes

    @property
    def kind(self) -> PerHead:
        """The attention that was chosen."""
        return PerHead(tuple(self.candidates[at] for at in self.chosen))

    @property
    def total_bytes(self) -> int:
        """Bytes of the state of one sequence."""
        return sum(self.n_bytes[at] for at in self.chosen)

    def __str__(self) -> str:
        """Return a row per kv head: its error under each candidate, the chosen one in brackets."""
        names = [f"{x.window}+{x.heavy}+{x.clusters} {x.remainder}" for x in self.candidates]
        rows = ["head  window+heavy+clusters remainder: " + ", ".join(names)]
        for head, (errors, at) in enumerate(zip(self.error.tolist(), self.chosen, strict=True)):
            said = [f"[{x:.3g}]" if i == at else f"{x:.3g}" for i, x in enumerate(errors)]
            rows.append(f"{head:4}  " + "  ".join(said) + ("" if self.is_met[head] else "  above the target"))
        return "\n".join(rows)


def calibrate_remainder(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B K T E"],
    v: Float[Tensor, "B K T E_v"],
    candidates: Sequence[StreamingOptions],
    *,
    target: float | None = None,
    budget_bytes: int | None = None,
    scale: float | None = None,
) -> Calibration:
    """Return for each kv head the cheapest candidate whose error is at most `target`.

    Where none is, the head gets the one of least error and is marked. With `budget_bytes` in the place of
    `target` each head gets the candidate of least error among those of at most so many bytes. Ties go to
    the smaller error, then to fewer bytes. Takes one pass of streaming attention per candidate and O(T^2)
    for the exact one; nothing is drawn but by the candidates' own seeds. Raises UsageError unless exactly
    one of the two is given, for a text too short to absorb a token, for candidates that move old tokens
    within it (set `position` afterwards), and for a budget that no candidate keeps.
    """
    n_tokens = k.shape[2]
    first = _first_counted(candidates, n_tokens, target, budget_bytes)
    exact = softmax()(q, k, v, scale=scale)[:, :, first:].double()
    heads = k.shape[1]
    norm = _per_head(exact, heads)
    errors, n_bytes = [], []
    with torch.no_grad():
        for options in candidates:
            out = Streaming(options)(q, k, v, scale=scale)[:, :, first:].double()
            errors.append(_per_head(out - exact, heads) / norm.clamp(min=1e-30))
            n_bytes.append(Streaming(options).start(1, 1, k.shape[3], v.shape[3]).n_bytes)
    error = torch.stack(errors, 1).cpu()
    chosen, is_met = [], []
    for row in error.tolist():
        at, is_within = _choice(row, n_bytes, target, budget_bytes)
        chosen.append(at)
        is_met.append(is_within)
    return Calibration(tuple(candidates), error, tuple(n_bytes), tuple(chosen), tuple(is_met))


def _first_counted(
    candidates: Sequence[StreamingOptions], n_tokens: int, target: float | None, budget_bytes: int | None
) -> int:
    """Return the first position at which a token may have been absorbed; raise UsageError as documented."""
    if not candidates:
        raise UsageError("candidates is empty; expected at least one StreamingOptions.")
    if (target is None) == (budget_bytes is None):
        raise UsageError(
            f"target is {target}, budget_bytes {budget_bytes}; give exactly one: an error or bytes per head."
        )
    if target is not None and not target > 0:
        raise UsageError(f"target is {target}; expected a relative error above 0.")
    if any(options.shift(n_tokens) for options in candidates):
        raise UsageError(
            f"A candidate moves old tokens within {n_tokens} tokens: no exact attention to be compared with; "
            "calibrate with position='absolute' and set the position afterwards."
        )
    first = min(options.held for options in candidates)
    if n_tokens <= first:
        raise UsageError(
            f"The text has {n_tokens} tokens, the least window and block hold {first}; give more tokens."
        )
    return first


def _per_head(x: Float[Tensor, "B H T E_v"], heads: int) -> Float[Tensor, " K"]:
    return x.unflatten(1, (heads, -1)).square().sum((0, 2, 3, 4)).sqrt()


def _choice(
    errors: list[float], n_bytes: list[int], target: float | None, budget_bytes: int | None
) -> tuple[int, bool]:
    """Return the candidate of one head, and whether it keeps what was asked."""
    every = range(len(errors))
    if budget_bytes is not None:
        fits = [at for at in every if n_bytes[at] <= budget_bytes]
        if not fits:
            raise UsageError(
                f"budget_bytes is {budget_bytes}, the smallest candidate takes {min(n_bytes)} per head; give "
                "more, or smaller candidates."
            )
        return min(fits, key=lambda at: (errors[at], n_bytes[at])), True
    within = [at for at in every if target is not None and errors[at] <= target]
    if within:
        return min(within, key=lambda at: (n_bytes[at], errors[at])), True
    return min(every, key=lambda at: (errors[at], n_bytes[at])), False
