"""Choosing: which degree a context needs, and a needle to ask any kind for.   (floor 4 · attention)

The needle, after arXiv:2310.20051 and arXiv:2310.11685 (abstracts), construction ours. With L = ln n, row j
of the matrix A, which is q, k and v at once, is

    [a sqrt(L) at one row j* only,   b sqrt(L) e_(j mod (d - 2)),   c sqrt(L)]

with a = `hidden` (there is no needle) or `shown` (there is). Attention with weight kappa of the scores gives
row j* the weight w on itself; the other rows see it as one of their type. A network of m random sign vectors
y_i and the threshold (b + c + theta) sqrt(L) adds up relu(<out_j, y_i> - threshold). For weights that are
never negative:

    without a needle its answer is 0;
    it is 0 with one, too, where w <= theta / shown (and n / (d - 2) >= shown / theta);
    it is positive with probability 1 - (7/8)^m where w >= (theta + 2 b) / (shown + 2 b).

So softmax attention finds the needle for large n when shown^2 + b^2 > 1, a power needs a degree of order log
n, and attention linear in the scores never does. The weights are set by hand: nothing here is trained.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.attention.contract import Kind
from winnow.base.errors import UsageError
from winnow.base.rng import generator

TIE = 1e-9  # a sum above it counts as positive


@final
@dataclass(frozen=True)
class Needle:
    """The sizes of the features, the width of the rows, and how sure the network is to be."""

    width: int = 34
    hidden: float = 0.1
    shown: float = 1.2
    b: float = 0.5
    c: float = 0.5
    theta: float = 0.5
    failure: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what the statements above do not cover."""
        if self.width < 3 or min(self.b, self.c) <= 0 or not 0 < self.failure < 1:
            raise UsageError(f"{self}; expected width >= 3, b, c > 0 and 0 < failure < 1.")
        if not 0 <= self.hidden < self.theta < self.shown:
            raise UsageError(f"{self}; expected 0 <= hidden < theta < shown.")

    @property
    def n_signs(self) -> int:
        """m, the sign vectors of the network."""
        return math.ceil(math.log(1 / self.failure) / math.log(8 / 7))

    @property
    def lost_below(self) -> float:
        """The weight up to which the needle is never found."""
        return self.theta / self.shown

    @property
    def found_above(self) -> float:
        """The weight from which it is found, but for `failure`."""
        return (self.theta + 2 * self.b) / (self.shown + 2 * self.b)

    def check_length(self, n: int) -> None:
        """Raise UsageError unless `n` rows hold every type equally often, at least once."""
        if n < 1 or n % (self.width - 2) or n < 2:
            raise UsageError(f"n is {n}; expected a multiple of {self.width - 2}, the number of types.")


@runtime_checkable
class ScoreWeight(Protocol):
    """A weight that depends on the score alone."""

    def log_weight(self, score: float) -> float:
        """Return the logarithm of the weight of a positive score."""
        ...


@final
@dataclass(frozen=True)
class Exponential:
    """Softmax attention's weight."""

    def log_weight(self, score: float) -> float:
        """Return the score itself."""
        return score


@final
@dataclass(frozen=True)
class Power:
    """The weight score ** degree; degree 1 is attention linear in the scores."""

    degree: int

    def log_weight(self, score: float) -> float:
        """Return the degree times the logarithm of the score."""
        return self.degree * math.log(score)


@final
@dataclass(frozen=True)
class Separation:
    """What a kernel makes of the needle."""

    weight: float  # w, of the needle's row on itself
    margin: float  # shown * w - 2 b (1 - w) - theta: where positive, only the signs can fail
    says: Literal["lost", "open", "found"]  # what the statements above promise
    found_without: float  # share of trials that answer "needle" though there is none
    found_with: float  # share of trials that answer "needle" where there is one


def min_poly_degree(n: int, signal: float, noise: float, target: float) -> int:
    """Return the least degree that gives one score `signal` among n - 1 scores `noise` the weight `target`.

    ``ceil(ln((n - 1) w / (1 - w)) / ln(signal / noise))``, at least 1: it grows with log n. Polynomial
    attention needs it even: round up. Scores include the bias. Raises UsageError unless
    0 < noise < signal, n >= 2 and 0 < target < 1.
    """
    if n < 2 or not 0 < target < 1:
        raise UsageError(f"n is {n}, target {target}; expected n >= 2 and 0 < target < 1.")
    if not 0 < noise < signal < math.inf:
        raise UsageError(
            f"signal is {signal}, noise {noise}; expected 0 < noise < signal: no degree tells "
            "equal scores apart."
        )
    exact = math.log((n - 1) * target / (1 - target)) / math.log(signal / noise)
    return max(1, math.ceil(exact - 1e-12))


def separation_probe(
    kernel: int | Literal["exp"], n: int, needle: Needle | None = None, *, trials: int = 40, rng: int
) -> Separation:
    """Say whether a weight finds the needle among `n` rows: what is foretold, and what `trials` trials do.

    `kernel` is "exp" for softmax attention or the degree of a power. Rows of a type are equal, so the cost
    is O(d^2) per trial whatever n. Raises UsageError for another kernel, and n that is no multiple of d - 2.
    """
    needle = needle or Needle()
    needle.check_length(n)
    weight = _score_weight(kernel)
    own = _outputs(weight, n, needle, needle.shown)
    w = float(own[0, 0]) / (needle.shown * math.sqrt(math.log(n)))
    found = [
        _found_share(_outputs(weight, n, needle, a), n, needle, trials, rng)
        for a in (needle.hidden, needle.shown)
    ]
    margin = needle.shown * w - 2 * needle.b * (1 - w) - needle.theta
    is_lost = w <= needle.lost_below and n // (needle.width - 2) >= needle.shown / needle.theta
    says = "found" if w >= needle.found_above else "lost" if is_lost else "open"
    return Separation(w, margin, says, *found)


def needle_rows(n: int, needle: Needle, *, position: int, is_shown: bool) -> Float[Tensor, "N D"]:
    """Return the matrix A itself, in float64, with the needle's row at `position`."""
    needle.check_length(n)
    if not 0 <= position < n:
        raise UsageError(f"position is {position}; expected 0 <= position < {n}.")
    rows = torch.zeros(n, needle.width, dtype=torch.float64)
    rows[position, 0] = needle.shown if is_shown else needle.hidden
    rows[torch.arange(n), 1 + torch.arange(n) % (needle.width - 2)] = needle.b
    rows[:, -1] = needle.c
    return rows * math.sqrt(math.log(n))


def finds_needle(
    kind: Kind, n: int, needle: Needle | None = None, *, trials: int = 20, rng: int
) -> tuple[float, float]:
    """Return in which share of trials any kind of attention answers "needle" without and with one.

    The kind attends over all `n` rows with scale 1, each trial with its own position and signs: O(n) or
    O(n^2) operations, the kind's own. Raises UsageError as `separation_probe` does.
    """
    needle = needle or Needle()
    stream, shares = generator(rng), []
    for is_shown in (False, True):
        hits = 0
        for _ in range(trials):
            position = int(torch.randint(n, (), generator=stream))
            rows = needle_rows(n, needle, position=position, is_shown=is_shown)[None, None]
            out = kind(rows, rows, rows, causal=False, scale=1.0)[0, 0]
            hits += _answers(out, torch.ones(n, dtype=torch.float64), n, needle, stream)
        shares.append(hits / trials)
    return shares[0], shares[1]


def _score_weight(kernel: int | str) -> ScoreWeight:
    if kernel == "exp":
        return Exponential()
    if isinstance(kernel, int) and kernel >= 1:
        return Power(kernel)
    raise UsageError(f"kernel is {kernel!r}; expected 'exp' or a degree of at least 1.")


def _outputs(weight: ScoreWeight, n: int, needle: Needle, a: float) -> Float[Tensor, "rows D"]:
    """Return the distinct rows of the output: the needle's, its type's, and each other type's."""
    length, n_types = math.log(n), needle.width - 2
    each = n // n_types
    b2, c2 = needle.b**2, needle.c**2
    own, same, other = (weight.log_weight(length * s) for s in (a * a + b2 + c2, b2 + c2, c2))
    root = math.sqrt(length)
    out = torch.zeros(n_types + 1, needle.width, dtype=torch.float64)
    for row in range(n_types + 1):
        counts = torch.full((n_types,), float(each), dtype=torch.float64)  # keys of each type
        logs = torch.full((n_types,), other, dtype=torch.float64)
        kind = max(row - 1, 0)  # the needle's own type is 0, rows 0 and 1
        logs[kind] = same
        weights = counts * (logs - max(own, same)).exp()
        on_needle = math.exp(same - max(own, same)) if kind == 0 else math.exp(other - max(own, same))
        if row == 0:
            weights[0] += math.exp(own - max(own, same)) - on_needle
            on_needle = math.exp(own - max(own, same))
        total = weights.sum()
        out[row, 0] = a * root * on_needle / total
        out[row, 1:-1] = needle.b * root * weights / total
        out[row, -1] = needle.c * root
    return out


def _found_share(out: Tensor, n: int, needle: Needle, trials: int, rng: int) -> float:
    each = n // (needle.width - 2)
    counts = torch.full((len(out),), float(each), dtype=torch.float64)
    counts[0], counts[1] = 1.0, each - 1.0
    stream = generator(rng)
    return sum(_answers(out, counts, n, needle, stream) for _ in range(trials)) / trials


def _answers(out: Tensor, counts: Tensor, n: int, needle: Needle, stream: torch.Generator) -> bool:
    """Return whether a network with fresh signs adds up to more than nothing."""
    signs = 2.0 * torch.randint(2, (needle.width, needle.n_signs), generator=stream) - 1
    threshold = (needle.b + needle.c + needle.theta) * math.sqrt(math.log(n))
    return float((counts[:, None] * (out @ signs.to(out.dtype) - threshold).clamp(min=0)).sum()) > TIE
