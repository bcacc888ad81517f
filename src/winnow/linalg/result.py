"""Result: a solution, what is known of it, and how it was asked for.   (floor 2 · linalg)"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

Answer = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Result:
    """A solution and what is known of it; unpacks as numpy's does: ``x, residual, rank, s = result``.

    residual         |b - A x|^2 per right side, empty where the rank is below D or N <= D, as numpy's
    eps_certified    largest over the right sides: ``|A x - b|^2 <= (1 + eps) min``; inf: no claim
    backward_error   largest: an estimate of the least |dA| / |A| for which x is exact; NaN with certify=False
    cond_est         estimate, from below, of the condition of A with its columns scaled to norm 1
    is_converged     whether what was asked was reached; `message` says what was not
    """

    x: Answer
    squares: Float64[np.ndarray, " B"]
    rank: int
    eps_certified: float
    backward_error: float
    cond_est: float
    passes_over_A: int
    method: str
    plan: str
    is_converged: bool
    message: str
    shape: tuple[int, int]
    spectrum: Float64[np.ndarray, " _"] | Float64[np.ndarray, "D D"]  # singular values, or what has them

    @property
    def residual(self) -> Float64[np.ndarray, " _"]:
        """Sums of squares, as numpy gives them."""
        return self.squares if self.rank == self.shape[1] < self.shape[0] else np.empty(0)

    @functools.cached_property
    def s(self) -> Float64[np.ndarray, " _"]:
        """Singular values of A, descending, computed when first asked for: 2 D^3 operations.

        Those of the sketch where the method is "sketch": within a factor of 1 +- sqrt(D / height). With a
        ridge, those of A stacked on its root.
        """
        return self.spectrum if self.spectrum.ndim == 1 else np.linalg.svd(self.spectrum, compute_uv=False)

    def __iter__(self) -> Iterator[object]:
        """Yield x, residual, rank, s."""
        return iter((self.x, self.residual, self.rank, self.s))


@dataclass(frozen=True)
class Options:
    """How to solve: the arguments of `lstsq` behind the border."""

    eps: float | None
    rcond: float | None
    seed: int
    certify: bool
    threads: int
    height: int | None
