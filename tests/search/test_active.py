"""Active neurons by search, and the layer that touches no others, against the dense one."""

import pytest
import torch

from winnow.base.errors import UsageError
from winnow.search import HeavyReLULinear, active_neurons
from winnow.search.active import BREAK_EVEN


def aligned(rng: torch.Generator, n_rows: int, n_neurons: int, width: int) -> tuple:
    """Unit weights, and unit rows of which each lies near one neuron; biases let only near neurons fire."""
    weight = torch.randn(n_neurons, width, generator=rng, dtype=torch.float64)
    weight /= weight.norm(dim=1, keepdim=True)
    near = torch.randint(0, n_neurons, (n_rows,), generator=rng)
    x = weight[near] + 0.2 * torch.randn(n_rows, width, generator=rng, dtype=torch.float64) / width**0.5
    x /= x.norm(dim=1, keepdim=True)
    return weight, x, torch.full((n_neurons,), -0.8, dtype=torch.float64)


def test_finds_the_active_neurons_by_search(rng: torch.Generator):
    weight, x, bias = aligned(rng, 300, 700, 128)
    active = active_neurons(weight, x, bias=bias, recall=0.99999)
    expected = torch.nonzero(x @ weight.T + bias > 0)
    assert torch.equal(torch.stack([active.rows, active.neurons], dim=1), expected)
    assert len(expected) >= 300
    assert (active.is_dense, active.note) == (False, "")
    assert active.share == pytest.approx(len(expected) / (300 * 700))


def test_where_many_fire_all_products_are_computed_and_the_note_says_so(rng: torch.Generator):
    weight, x, _ = aligned(rng, 50, 60, 32)
    active = active_neurons(weight, x)
    assert active.is_dense
    assert active.share > BREAK_EVEN
    assert "all products are cheaper" in active.note
    assert torch.equal(torch.stack([active.rows, active.neurons], 1), torch.nonzero(x @ weight.T > 0))


def test_where_none_can_fire_none_is_found(rng: torch.Generator):
    weight, x, bias = aligned(rng, 20, 30, 16)
    assert len(active_neurons(weight, x, bias=bias - 5).rows) == 0
    assert len(active_neurons(weight, torch.zeros_like(x), bias=bias).rows) == 0
    assert len(active_neurons(weight, torch.zeros_like(x), bias=bias.abs()).rows) == 20 * 30


@pytest.mark.parametrize("shift", [0.0, -0.8])
def test_the_layer_equals_the_dense_one_forward_and_backward(rng: torch.Generator, shift: float):
    weight, x, _ = aligned(rng, 90, 300, 64)
    bias = torch.full((300,), shift, dtype=torch.float64)
    layer = HeavyReLULinear(weight.clone(), bias.clone(), recall=0.999999)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    dense = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    out, expected = layer(inputs[0]), torch.relu(inputs[1] @ dense[0].T + dense[1])
    assert torch.allclose(out, expected, atol=1e-13)
    pull = torch.randn(out.shape, generator=rng, dtype=torch.float64)
    (out * pull).sum().backward()
    (expected * pull).sum().backward()
    for got, wanted in zip((inputs[0], layer.weight, layer.bias), (inputs[1], *dense), strict=True):
        assert got.grad is not None
        assert wanted.grad is not None
        assert torch.allclose(got.grad, wanted.grad, atol=1e-12)
    assert layer.last is not None
    assert layer.last.is_dense == (shift == 0.0)


def test_the_gradient_passes_gradcheck(rng: torch.Generator):
    weight, x, bias = aligned(rng, 6, 9, 8)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return HeavyReLULinear(weight, bias + 0.5)(x)

    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),), eps=1e-7)


@pytest.mark.parametrize(
    ("weight", "x", "bias"),
    [
        (torch.ones(3, 4), torch.ones(2, 5), None),
        (torch.ones(3, 4), torch.zeros(0, 4), None),
        (torch.ones(3, 4), torch.ones(2, 4), torch.ones(2)),
        (torch.full((3, 4), torch.nan), torch.ones(2, 4), None),
        (torch.ones(3, 4), torch.full((2, 4), torch.inf), None),
    ],
)
def test_refuses_shapes_that_do_not_chain_and_what_is_not_finite(weight, x, bias):
    with pytest.raises((UsageError, TypeError), match=r"expected|Type-check"):
        active_neurons(weight, x, bias=bias)
