"""Meters: noise that is really there, its epsilon, and what noise costs an attacker.   (floor 5 · audit)

Rows that must be zero, of positions or tokens that no text used, hold the added noise and nothing else. Where
an update has none, the small singular values of its matrices do (the bulk of Marchenko and Pastur). What was
configured does not enter: an update whose noise was logged and not added measures zero. Rounding leaves a
bulk too and is told from noise by the grid that the entries lie on: it has no epsilon.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from winnow.audit.front import Front
from winnow.audit.leakage.spans import read_span
from winnow.base.errors import ResourceError, UsageError
from winnow.linalg.privacy import Account, Release, account

MOST_UNKNOWNS = 4096
LEVELS = (127, 7)  # of signed integers of 8 and 4 bits
ON_GRID = 1e-4  # of a step
FLOAT32_SUMS = 1e-6  # of a root-mean-square entry: what sums in float32 are off by, and more
MOMENTS = 5.0  # standard errors that a fourth moment may be off by
OUTLYING = 5.0  # standard deviations of a row's length above the median: the row is in use


class Kind(StrEnum):
    """What a measured deviation is of."""

    NONE = "none"
    GAUSSIAN = "gaussian"
    ROUNDING = "rounding"
    UNKNOWN = "cannot tell"


@final
@dataclass(frozen=True)
class Noise:
    """`deviation` per entry, from `n_entries` entries; `source` says which, `kind` what it is of."""

    deviation: float
    n_entries: int
    source: str
    kind: Kind

    @property
    def relative_error(self) -> float:
        """The standard error of `deviation`, as a share of it."""
        return 1 / math.sqrt(2 * self.n_entries)


def noise_of(front: Front, gradients: Mapping[str, Tensor]) -> Noise | None:
    """Return the noise in `gradients`: by zero rows where there are any, by the bulk of layer 0 otherwise.

    Within 2 % from some 2,500 entries on; None where there is nothing to measure. Needs most rows of the
    position or of an untied token embedding to be unused.
    """
    names = [front.layout.positions]
    if not front.layout.is_tied:
        names.append(front.layout.tokens)
    for name in names:
        if name is not None and name in gradients:
            rows = gradients[name]
            unused = rows[unused_rows(rows)]
            deviation = float(unused.double().square().mean().sqrt())
            kind = kind_of(deviation, unused, rounding(rows))
            return Noise(deviation, unused.numel(), f"rows of {name} that no text used", kind)
    layer = front.layout.layers[0]
    found = None
    for place in (*layer.reads, *layer.mlp):
        pair = place.adapter
        for name in (place.weight, *((pair.a, pair.b) if pair else ())):
            if name in gradients and min(gradients[name].shape) > 1:
                found = _bulk(name, gradients[name])
                if found.kind is not Kind.UNKNOWN:
                    return found
    return found


def unused_rows(rows: Float[Tensor, "N D"]) -> Bool[Tensor, " N"]:
    """Return which rows are all noise. More than half of the rows must be; the others are longer."""
    lengths = rows.double().norm(dim=1)
    return lengths <= lengths.median() * (1 + OUTLYING / math.sqrt(2 * rows.shape[1]))


def bulk_noise(matrix: Float[Tensor, "N M"]) -> float:
    """Return the deviation of the noise in `matrix` from the singular values that no signal explains."""
    return read_span(_wide(matrix)).noise


def _wide(matrix: Float[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def _bulk(name: str, matrix: Float[Tensor, "N M"]) -> Noise:
    """Return the noise behind what the signal of `matrix` spans; unknown where the signal spans it whole."""
    wide = _wide(matrix)
    if not bool(wide.any()):
        return Noise(0.0, wide.numel(), f"the bulk of {name}", Kind.NONE)
    span = read_span(wide)
    rest = wide.double() - span.basis @ (span.basis.mT @ wide.double())
    n_entries = (span.width - span.rank) * span.n_columns
    kind = Kind.UNKNOWN if span.is_saturated else kind_of(span.noise, rest, rounding(wide))
    return Noise(span.noise, n_entries, f"the bulk of {name}", kind)


def kind_of(deviation: float, entries: Float[Tensor, "*N"], rounded: float) -> Kind:
    """Say what `entries` of noise are of, where rounding alone would make noise of deviation `rounded`.

    None where they are zero; of rounding up to twice what it makes; Gaussian from four times that on where
    their fourth moment is that of a normal law within `MOMENTS` standard errors. Else it cannot be told:
    what is left between, noise of another law, a signal without a clear end.
    """
    if deviation == 0:
        return Kind.NONE
    if deviation <= 2 * rounded:
        return Kind.ROUNDING
    if deviation < 4 * rounded:
        return Kind.UNKNOWN
    flat = entries.double().flatten()
    fourth = float((flat / flat.square().mean().sqrt()).pow(4).mean())
    is_normal = abs(fourth - 3) <= MOMENTS * math.sqrt(24 / len(flat))
    return Kind.GAUSSIAN if is_normal else Kind.UNKNOWN


def rounding(tensor: Float[Tensor, "*N"]) -> float:
    """Return the deviation that rounding put into `tensor`, by the grid that its entries lie on.

    The grids are those of bf16 and fp16, of integers of 8 and 4 bits with one scale for the tensor, and
    where the entries lie on none of these that of float32 sums.
    """
    x = tensor.double().abs()
    largest = float(x.max())
    if largest == 0:
        return 0.0
    for levels in LEVELS:
        steps = x * (levels / largest)
        if bool(((steps - steps.round()).abs() < ON_GRID).all()):
            return largest / levels / math.sqrt(12)
    for dtype, bits in ((torch.bfloat16, 7), (torch.float16, 10)):
        if bool((tensor.to(dtype).double().abs() == x).all()):
            return float((x.clamp(min=torch.finfo(dtype).tiny).log2().floor() - bits).exp2().norm()) / (
                math.sqrt(12 * x.numel())
            )
    return float(x.square().mean().sqrt()) * FLOAT32_SUMS


def implied(
    noise: Noise, clip: float, batch: int, rate: float | int, steps: int, delta: float
) -> Account | None:
    """Return both epsilons of the measured noise; None where none is Gaussian, that is, no known privacy.

    The update is a mean over `batch` records cut to `clip`: noise multiplier ``deviation * batch / clip``.
    Compare with the account of the configured noise. Raises UsageError for numbers outside their ranges.
    """
    if not 0 < clip < math.inf or batch < 1:
        raise UsageError(f"clip is {clip}, batch {batch}; expected a clip above 0 and at least one record.")
    if noise.kind is not Kind.GAUSSIAN:
        return None
    multiplier = noise.deviation * batch / clip
    return account(Release(multiplier, rate, steps), delta) if multiplier > 1e-6 else None


@final
@dataclass(frozen=True)
class Identifiability:
    """What a gradient says of its input, near it: singular values of d gradient / d input."""

    values: Float64[Tensor, " N"]

    @property
    def rank(self) -> int:
        """How many directions of the input the gradient tells."""
        return int((self.values > 1e-6 * self.values.max()).sum())

    @property
    def is_recoverable(self) -> bool:
        """Whether no direction of the input is hidden, locally."""
        return self.rank == len(self.values)

    @property
    def condition(self) -> float:
        """Largest by smallest singular value."""
        return float(self.values.max() / self.values.min().clamp(min=1e-300))

    def error(self, noise: float) -> float:
        """Return the least mean squared error per entry that an unbiased attacker can have at `noise`.

        The Cramer-Rao bound, ``noise^2 tr((J^T J)^-1) / N``. Says nothing of attackers who know the
        vocabulary: the span attack is one.
        """
        return float(noise**2 * self.values.pow(-2).mean())

    def noise_for(self, error: float) -> float:
        """Return the deviation of noise at which that error is `error`."""
        return math.sqrt(error / float(self.values.pow(-2).mean()))


def identifiability(gradient: Callable[[Tensor], Tensor], inputs: Float[Tensor, "*N"]) -> Identifiability:
    """Return what ``gradient(inputs)``, a differentiable vector, says of `inputs` near these.

    Costs one forward-mode product per entry of `inputs`. Raises ResourceError above 4,096 entries.
    """
    n_unknowns = inputs.numel()
    if n_unknowns > MOST_UNKNOWNS:
        raise ResourceError(f"the input has {n_unknowns} entries, expected at most {MOST_UNKNOWNS}.")
    columns = []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for place in range(n_unknowns):
            unit = torch.zeros(n_unknowns, dtype=inputs.dtype)
            unit[place] = 1.0
            column = torch.autograd.functional.jvp(gradient, inputs, unit.view(inputs.shape))[1]
            columns.append(torch.as_tensor(column).flatten())
    values = torch.linalg.svdvals(torch.stack(columns, 1).double())
    # Of fewer equations than unknowns the rest is hidden.
    return Identifiability(torch.nn.functional.pad(values, (0, n_unknowns - len(values))))
