"""Predictor: which neurons will fire, from a low-rank look at the layer's input.   (floor 5 · engine)

    score = up @ (down @ x) + bias,   neuron f is computed when score[f] > 0

`down` [R, D] and `up` [F, R] approximate the layer's own input weights, so the score approximates the
pre-activation minus a threshold. A neuron predicted in vain costs its bytes and changes nothing, because
its activation is computed exactly; a neuron missed loses its contribution. That is the only error.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.kernels import Matrix, QuantisedMatrix


@final
@dataclass(frozen=True)
class LowRankPredictor:
    """Two thin matrices and a bias that stand for a layer's input weights.

    Reads ``R * (D + F)`` weights and F biases per token, against ``2 * D * F`` of the whole MLP.
    """

    down: Matrix | QuantisedMatrix  # [R, D]
    up: Matrix | QuantisedMatrix  # [F, R]
    bias: Float[Tensor, " F"]  # the layer's own bias, the mean's share, minus each neuron's threshold

    @property
    def rank(self) -> int:
        """R, the width of the bottleneck."""
        return len(self.down.weight)

    @property
    def n_bytes(self) -> int:
        """Bytes read per token."""
        return self.down.n_bytes + self.up.n_bytes + 4 * len(self.bias)

    def scores(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T F"]:
        """Return the scores as the kernel computes them, up to the order of summation."""
        return (x @ self.down.weight.float().T) @ self.up.weight.float().T + self.bias


@dataclass(frozen=True)
class InputMoments:
    """Mean and covariance of a layer's inputs, in float64."""

    mean: Float[Tensor, " D"]
    covariance: Float[Tensor, "D D"]


@dataclass(frozen=True)
class Factors:
    """A whitened low-rank factorisation at full rank; a predictor of any rank is a slice of it."""

    down: Float[Tensor, "D D"]
    up: Float[Tensor, "F D"]
    weight_mean: Float[Tensor, " F"]
    mean: Float[Tensor, " D"]
    bias: Float[Tensor, " F"]

    def predictor(self, rank: int, thresholds: Float[Tensor, " F"]) -> LowRankPredictor:
        """Return the best predictor of `rank`, firing where it expects pre-activations above `thresholds`.

        Held in int8: its rounding is far below what the low rank loses, and it halves the bytes.
        """
        down, up = QuantisedMatrix.of(self.down[:rank]), QuantisedMatrix.of(self.up[:, :rank])
        # The mean input passes exactly, whatever the rank: only deviations from it are approximated.
        kept = up.weight.double() @ (down.weight.double() @ self.mean)
        bias = self.bias + self.weight_mean - kept - thresholds
        return LowRankPredictor(down, up, bias.float().contiguous())


def whitened_svd(w_in: Float[Tensor, "F D"], bias: Float[Tensor, " F"], moments: InputMoments) -> Factors:
    """Factor `w_in` so that every leading slice is the best of its rank on inputs with these moments.

    With C the covariance and C = L L^T, the SVD of ``w_in @ L`` minimises the expected squared error
    of the pre-activations over all maps of rank R (Eckart-Young). Computed in float64 from a D x D
    eigenproblem; costs O(F D^2 + D^3). Directions that the inputs never take are damped, not dropped.
    """
    weight = w_in.double()
    ridge = 1e-6 * moments.covariance.diagonal().mean().clamp_min(1e-12)
    lower = torch.linalg.cholesky(
        moments.covariance + ridge * torch.eye(weight.shape[1], dtype=torch.float64)
    )
    seen = weight @ lower  # [F, D]
    _, right = torch.linalg.eigh(seen.T @ seen)
    right = right.flip(-1)  # eigh is ascending
    down = torch.linalg.solve_triangular(lower.T, right, upper=True).T  # right^T L^-1
    return Factors(down, seen @ right, weight @ moments.mean, moments.mean, bias.double())
