"""Whitened: the closed forms, from the moments of what a predictor reads.   (floor 5 · engine)"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.engine.sparsity.predictor.index import IndexPredictor
from winnow.engine.sparsity.predictor.lookahead import Lookahead
from winnow.engine.sparsity.predictor.low_rank import LowRankPredictor
from winnow.kernels import QuantisedMatrix
from winnow.kernels.bit_products.reference import pack_signs_reference


@dataclass(frozen=True)
class CrossMoments:
    """How an MLP's own input x moves with a view y of it, in float64."""

    mean: Float[Tensor, " D"]  # of x
    covariance: Float[Tensor, "D D"]  # E[(x - mean x) (y - mean y)^T]


@dataclass(frozen=True)
class InputMoments:
    """Mean and covariance of what a predictor reads, in float64; `cross` where it is not the MLP's input."""

    mean: Float[Tensor, " D"]
    covariance: Float[Tensor, "D D"]
    cross: CrossMoments | None = None


@dataclass(frozen=True)
class Factors:
    """A whitened low-rank factorisation at full rank; a predictor of any rank is a slice of it."""

    down: Float[Tensor, "D D"]
    up: Float[Tensor, "F D"]
    weight_mean: Float[Tensor, " F"]  # w_in times the mean of the MLP's own input
    mean: Float[Tensor, " D"]  # of what is read
    bias: Float[Tensor, " F"]
    lookahead: Lookahead = Lookahead.SAME

    def predictor(self, rank: int, thresholds: Float[Tensor, " F"]) -> LowRankPredictor:
        """Return the best predictor of `rank`, firing where it expects pre-activations above `thresholds`.

        Held in int8: its rounding is far below what the low rank loses, and it halves the bytes.
        """
        down, up = QuantisedMatrix.of(self.down[:rank]), QuantisedMatrix.of(self.up[:, :rank])
        # The mean input passes exactly, whatever the rank: only deviations from it are approximated.
        kept = up.weight.double() @ (down.weight.double() @ self.mean)
        bias = self.bias + self.weight_mean - kept - thresholds
        return LowRankPredictor(down, up, bias.float().contiguous(), lookahead=self.lookahead)

    def index(self, n_signs: int, rank: int, rng: torch.Generator) -> IndexPredictor:
        """Return an index of `n_signs` signs, a multiple of 64, of the `rank` coordinates that matter most.

        Projections are orthogonal in groups of `rank`, which estimates angles better than independent ones.
        """
        planes = _orthogonal(rank, n_signs, rng)
        projection = QuantisedMatrix.of(planes.T @ self.down[:rank])
        offset = -(projection.weight.double() @ self.mean)
        up = self.up[:, :rank]
        words = pack_signs_reference((up @ planes > 0).numpy()).view(np.int64)
        sizes, bias = up.norm(dim=1).float(), (self.bias + self.weight_mean).float()
        return IndexPredictor(
            projection, offset.float(), torch.from_numpy(words), sizes, bias, lookahead=self.lookahead
        )


def whitened_svd(
    w_in: Float[Tensor, "F D"],
    bias: Float[Tensor, " F"],
    moments: InputMoments,
    lookahead: Lookahead = Lookahead.SAME,
) -> Factors:
    """Factor the map from a view to the pre-activations so that every leading slice is the best of its rank.

    With y the view, x the MLP's own input, C = cov(y) = L L^T and B = cov(x, y) C^-1, the SVD of
    ``w_in @ B @ L`` minimises the expected squared error of the pre-activations over all maps of rank R
    (reduced-rank regression; Eckart-Young where y is x and B the identity). Computed in float64 from a D x D
    eigenproblem; costs O(F D^2 + D^3). Directions that the inputs never take are damped, not dropped.
    `lookahead` is what `moments` were taken of. Raises UsageError where one of them lacks the other's cross.
    """
    if (moments.cross is None) != (lookahead is Lookahead.SAME):
        raise UsageError(
            f"lookahead is {lookahead} and the moments {'lack' if moments.cross is None else 'hold'} a cross "
            "covariance; expected one for half-layer and next-layer, none for same-layer."
        )
    weight = w_in.double()
    ridge = 1e-6 * moments.covariance.diagonal().mean().clamp_min(1e-12)
    lower = torch.linalg.cholesky(
        moments.covariance + ridge * torch.eye(weight.shape[1], dtype=torch.float64)
    )
    if moments.cross is None:
        own_mean, spread = moments.mean, lower
    else:  # B L = cov(x, y) L^-T
        own_mean = moments.cross.mean
        spread = torch.linalg.solve_triangular(lower, moments.cross.covariance.T, upper=False).T
    seen = weight @ spread  # [F, D]
    _, right = torch.linalg.eigh(seen.T @ seen)
    right = right.flip(-1)  # eigh is ascending
    down = torch.linalg.solve_triangular(lower.T, right, upper=True).T  # right^T L^-1
    return Factors(down, seen @ right, weight @ own_mean, moments.mean, bias.double(), lookahead)


def _orthogonal(rank: int, n_columns: int, rng: torch.Generator) -> Float[Tensor, "R n_columns"]:
    """Return columns of norm sqrt(rank), each `rank` of them in a row orthogonal to each other."""
    groups = []
    for start in range(0, n_columns, rank):
        square, _ = torch.linalg.qr(torch.randn(rank, rank, generator=rng, dtype=torch.float64))
        groups.append(square[:, : n_columns - start])
    return torch.cat(groups, dim=1) * rank**0.5
