"""Spans: what subspace the inputs of a map lie in, read from the map's gradient.   (floor 5 · audit)

    gradient of W in y = z W:   M = sum_n z_n g_n^T        its columns are sums of the inputs z_n

So the inputs lie in the span of M's left singular vectors, as many as there are distinct inputs. What
arithmetic or a defence adds to M is taken for noise of one standard deviation tau: a direction counts where
its singular value stands above the edge that such noise alone would reach (the spiked-matrix rule), and a row
may leave the span by no more than that noise tilts it. How near a wrong row comes by chance is a quantile of
the beta distribution: no threshold here is a number that someone liked.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.special import betaincinv
from torch import Tensor

FALSE_POSITIVES = 1e-3  # expected in a whole search among rows that point anywhere
SLACK = 1.1  # on the edge, whose fluctuation is of order D^(-2/3)
TILT = 9.0  # times the tilt that is expected; squared lengths
ROUNDING = 1e-9  # of a row's squared length: its own arithmetic in float32
CLEAN = 1e-10  # of the largest eigenvalue: below, a gap is one of arithmetic
WIDE = 100.0  # a gap between neighbouring eigenvalues that says: all noise is arithmetic's own
STEP = 9.0  # the least such gap behind a direction that counts; those of rounding stay below 2.5
SOLID = 10.0  # times what is told from nothing: from there on a gap is no accident of the solver
RESOLVED = 1e-16  # of the largest eigenvalue: what float64 tells from nothing


@final
@dataclass(frozen=True)
class Span:
    """The left singular vectors of a gradient, those that count first.

    `eigenvalues` are the squared singular values, descending; `rank` of them count; `noise` is tau, per entry
    of the gradient; `n_columns` its M.
    """

    eigenvalues: Float64[Tensor, " D"]
    vectors: Float64[Tensor, "D D"]
    rank: int
    noise: float
    n_columns: int

    @property
    def width(self) -> int:
        """D: of the space that the rows lie in."""
        return self.vectors.shape[0]

    @property
    def basis(self) -> Float64[Tensor, "D R"]:
        """The directions that count."""
        return self.vectors[:, : self.rank]

    @property
    def tilts(self) -> Float64[Tensor, " R"]:
        """How much of a squared length along each direction the noise is expected to turn out of the span.

        Rounding is not as large in every entry: where the largest eigenvalue behind the rank says more than
        the mean of all, it counts.
        """
        n_left = self.width - self.rank
        if not n_left:
            return torch.zeros(self.rank, dtype=torch.float64)
        loudest = float(self.eigenvalues[self.rank].sqrt()) / noise_edge(1.0, n_left, self.n_columns)
        return (n_left * max(self.noise, loudest) ** 2 / self.eigenvalues[: self.rank]).clamp(max=1.0)

    @property
    def is_saturated(self) -> bool:
        """Whether no direction is left outside: every row lies in the span, and none is told from another."""
        return self.rank >= self.width - 1

    def chance(self, n_rows: int) -> float:
        """Return how near, as a share of squared length, one of `n_rows` random rows may come by chance.

        A random row leaves a share of Beta((D - R) / 2, R / 2) outside; below the returned share fall
        `FALSE_POSITIVES` of `n_rows` on average. Rows of a layer norm without bias lie in D - 1 dimensions,
        which is what is counted here.
        """
        outside = max(self.width - 1 - self.rank, 0)
        if outside == 0 or self.rank == 0:
            return 0.0
        return float(betaincinv(outside / 2, self.rank / 2, min(FALSE_POSITIVES / max(n_rows, 1), 0.5)))

    def accepts(
        self,
        lengths: Float64[Tensor, "*N"],
        inside: Float64[Tensor, "*N"],
        tilted: Float64[Tensor, "*N"],
        n_rows: int,
    ) -> Tensor:
        """Return which rows lie in the span, from their squared lengths, those inside, and what noise tilts.

        `n_rows` is how many rows are tried in all.
        """
        outside = (lengths - inside).clamp(min=0.0)
        allowed = TILT * tilted + ROUNDING * lengths
        return (outside <= allowed) & (outside < self.chance(n_rows) * lengths)

    def holds(self, rows: Float[Tensor, "N D"], n_rows: int) -> Tensor:
        """Return which of `rows` lie in the span; `n_rows` is how many are tried in all."""
        rows = rows.double()
        along = (rows @ self.basis).square()
        return self.accepts(rows.square().sum(1), along.sum(1), along @ self.tilts, n_rows)


def read_span(gradient: Float[Tensor, "D M"], noise: float | None = None) -> Span:
    """Return the span of a gradient's columns; `noise` is its tau where it is known (`meters`).

    Left out, tau is what the eigenvalues behind the rank leave. Costs one symmetric eigenproblem of width D
    in float64. The rank is the least R whose remaining eigenvalues are within the edge of noise,
    ``tau^2 (sqrt M + sqrt(D - R))^2``, or where float32's own rounding is all the noise, the last gap.
    """
    matrix = gradient.double()
    width, n_columns = matrix.shape
    if n_columns < width:  # few columns, as adapters have: their square would lose half of the digits
        vectors, roots, _ = torch.linalg.svd(matrix, full_matrices=True)
        values = torch.nn.functional.pad(roots.square(), (0, width - n_columns))
        rank, tau = _rank(values.numpy(), n_columns, noise, RESOLVED**2)
    else:
        values, vectors = torch.linalg.eigh(matrix @ matrix.mT)
        values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
        rank, tau = _rank(values.numpy(), n_columns, noise, RESOLVED)
    return Span(values, vectors, rank, tau, n_columns)


def noise_edge(noise: float, width: int, n_columns: int) -> float:
    """Return the largest singular value that noise of deviation `noise` reaches alone."""
    return noise * (math.sqrt(width) + math.sqrt(n_columns))


def _rank(
    values: Float64[np.ndarray, " D"], n_columns: int, noise: float | None, resolved: float
) -> tuple[int, float]:
    """Return how many eigenvalues count, and tau; `resolved` of the largest is told from nothing."""
    width = len(values)
    if values[0] <= 0:
        return 0, 0.0
    if noise is not None and noise > 0:
        return int((values > SLACK * noise_edge(noise, width, n_columns) ** 2).sum()), noise
    left = np.cumsum(values[::-1])[::-1]  # left[r]: the sum of all from r on
    floor = values[0] * resolved
    # What R directions carry takes R columns' worth of noise with it.
    beside = np.maximum(n_columns - np.arange(width), 1)
    taus = np.sqrt(np.maximum(left, floor) / (np.arange(width, 0, -1) * beside))
    gaps = np.log(np.maximum(values[:-1], floor) / np.maximum(values[1:], floor))
    gaps[values[1:] > CLEAN * values[0]] = 0.0
    if gaps.max() > math.log(WIDE):
        # A token whose successor is all but certain has a direction far below the widest gap.
        gaps[values[:-1] < SOLID * floor] = 0.0
        rank = int(np.flatnonzero(gaps > math.log(STEP))[-1]) + 1
        return rank, float(taus[rank])
    edges = taus**2 * (np.sqrt(beside) + np.sqrt(np.arange(width, 0, -1))) ** 2
    beyond = np.flatnonzero(values <= SLACK * edges)
    rank = int(beyond[0]) if len(beyond) else width
    return rank, float(taus[min(rank, width - 1)])
