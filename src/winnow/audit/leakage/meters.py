"""Meters: noise that is really there, its epsilon, and what noise costs an attacker.   (floor 5 · audit)

Rows that must be zero, of positions or tokens that no text used, hold the added noise and nothing else. Where
an update has none, the small singular values of its matrices do (the bulk of Marchenko and Pastur). What was
configured does not enter: an update whose noise was logged and not added measures zero.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from winnow.audit.front import Front
from winnow.audit.leakage.spans import read_span
from winnow.base.errors import ResourceError, UsageError
from winnow.linalg.privacy import Account, Release, account

MOST_UNKNOWNS = 4096
OUTLYING = 5.0  # standard deviations of a row's length above the median: the row is in use


@final
@dataclass(frozen=True)
class Noise:
    """`deviation` per entry, from `n_entries` entries; `source` says which."""

    deviation: float
    n_entries: int
    source: str

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
            deviation, n_entries = row_noise(gradients[name])
            return Noise(deviation, n_entries, f"rows of {name} that no text used")
    layer = front.layout.layers[0]
    for place in (*layer.reads, *layer.mlp):
        pair = place.adapter
        for name in (place.weight, *((pair.a, pair.b) if pair else ())):
            if name in gradients and min(gradients[name].shape) > 1:
                return Noise(bulk_noise(gradients[name]), gradients[name].numel(), f"the bulk of {name}")
    return None


def row_noise(rows: Float[Tensor, "N D"]) -> tuple[float, int]:
    """Return the deviation of the entries of the rows that are all noise, and how many entries that are.

    More than half of the rows must be; the others are longer.
    """
    lengths = rows.double().norm(dim=1)
    width = rows.shape[1]
    usual = float(lengths.median())
    unused = lengths <= usual * (1 + OUTLYING / math.sqrt(2 * width))
    deviation = float((lengths[unused].square().sum() / (int(unused.sum()) * width)).sqrt())
    return deviation, int(unused.sum()) * width


def bulk_noise(matrix: Float[Tensor, "N M"]) -> float:
    """Return the deviation of the noise in `matrix` from the singular values that no signal explains."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    return read_span(wide).noise


def implied(
    noise: Noise, clip: float, batch: int, rate: float | int, steps: int, delta: float
) -> Account | None:
    """Return both epsilons of the measured noise; None where there is none, that is, no privacy.

    The update is a mean over `batch` records cut to `clip`: noise multiplier ``deviation * batch / clip``.
    Compare with the account of the configured noise. Raises UsageError for numbers outside their ranges.
    """
    if clip <= 0 or batch < 1:
        raise UsageError(f"clip is {clip}, batch {batch}; expected a clip above 0 and at least one record.")
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
