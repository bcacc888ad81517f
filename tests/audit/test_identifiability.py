"""What the gradient of one attention layer says of its input, near it: ranks, and the price of noise."""

import pytest
import torch
from torch import Tensor

from winnow.audit.leakage import identifiability


class Layer:
    """L = |softmax(X W X^T) X V - B|^2 / 2 and its gradients in W and V, in double precision."""

    def __init__(self, n: int, d: int, rng: torch.Generator) -> None:
        drawn = [
            torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((d, d), (d, d), (n, d))
        ]
        self.w, self.v, self.b = drawn[0] / d, drawn[1] / d**0.5, drawn[2]

    def of_w(self, x: Tensor) -> Tensor:
        p, e = self._forward(x)
        dp = e @ (x @ self.v).mT
        dz = p * (dp - (p * dp).sum(1, keepdim=True))
        return (x.mT @ dz @ x).flatten()

    def of_both(self, x: Tensor) -> Tensor:
        p, e = self._forward(x)
        return torch.cat([self.of_w(x), ((p @ x).mT @ e).flatten()])

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = (x @ self.w @ x.mT).softmax(1)
        return p, p @ x @ self.v - self.b


def inputs(n: int, d: int, rng: torch.Generator) -> Tensor:
    return torch.randn(n, d, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(("n", "d"), [(3, 4), (4, 6)])
def test_the_scores_gradient_alone_leaves_one_direction_and_the_values_close_it(n, d, rng):
    layer, x = Layer(n, d, rng), inputs(n, d, rng)
    assert identifiability(layer.of_w, x).rank == n * d - 1
    whole = identifiability(layer.of_both, x)
    assert whole.is_recoverable
    assert 1 < whole.condition < float("inf")


def test_more_unknowns_than_entries_of_the_gradients_are_not_recoverable(rng):
    found = identifiability(Layer(9, 4, rng).of_both, inputs(9, 4, rng))
    assert (found.rank, found.is_recoverable) == (32, False)
    assert (found.error(0.1), found.noise_for(0.1)) == (float("inf"), 0.0)


def test_a_fit_that_starts_at_the_truth_has_the_error_of_the_bound(rng):
    layer, x = Layer(3, 4, rng), inputs(3, 4, rng)
    found = identifiability(layer.of_both, x)
    noise = found.noise_for(1e-8)  # as deep as the linear part reaches
    errors = []
    for _ in range(40):
        seen = layer.of_both(x) + noise * torch.randn(32, generator=rng, dtype=torch.float64)
        y = x.clone()
        for _ in range(4):
            jacobian = torch.autograd.functional.jacobian(layer.of_both, y).flatten(1)
            y = y - torch.linalg.lstsq(jacobian, (layer.of_both(y) - seen)[:, None]).solution.view(y.shape)
        errors.append((y - x).square().mean())
    assert float(torch.stack(errors).mean()) == pytest.approx(1e-8, rel=0.5)
