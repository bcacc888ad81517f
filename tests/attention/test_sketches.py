"""Sketches: means and variances over 2,000 seeds are those of the closed forms, biases included."""

import itertools

import pytest
import torch

from winnow.attention import poly_sketch
from winnow.attention.series import power_features, taylor_features
from winnow.attention.sketches import (
    NonnegativeFeatures,
    ProductFeatures,
    TensorFeatures,
    product_variance,
    tensor_variance,
)
from winnow.base.errors import ResourceError, UsageError

SEEDS = 2000
Q = torch.tensor([0.9, -0.4, 0.3, 0.2], dtype=torch.float64)
K = torch.tensor([0.6, 0.1, 0.5, -0.7], dtype=torch.float64)
X, N = float(Q @ K), float((Q @ Q) * (K @ K))


def drawn(make, degree: int, size: int, bias: float = 0.0) -> torch.Tensor:
    """Return one weight of (Q, K) per seed."""
    maps = [make(degree, size, seed, bias) for seed in range(SEEDS)]
    return torch.stack([(each.queries(Q) * each.keys(K)).sum() for each in maps])


def check_mean(weights: torch.Tensor, mean: float) -> None:
    error = float(weights.std()) / SEEDS**0.5
    assert abs(float(weights.mean()) - mean) < 4 * error


def check_variance(weights: torch.Tensor, variance: float, within: float) -> None:
    assert float(weights.var()) == pytest.approx(variance, rel=within)


@pytest.mark.parametrize(("degree", "size"), [(2, 24), (4, 120)])
def test_product_is_unbiased_with_the_stated_variance(degree, size):
    weights = drawn(ProductFeatures, degree, size)
    check_mean(weights, X**degree)
    variance = float(product_variance(torch.tensor(X), torch.tensor(N), degree, size))
    # Products of four Gaussians have heavy tails: 2,000 draws know their variance to a fifth.
    check_variance(weights, variance, 0.1 if degree == 2 else 0.2)


@pytest.mark.parametrize(("degree", "size"), [(2, 16), (2, 17), (4, 16), (4, 9)])
def test_tensor_is_unbiased_with_the_stated_variance(degree, size):
    weights = drawn(TensorFeatures, degree, size)
    check_mean(weights, X**degree)
    variance = float(tensor_variance(Q, K, degree, size))
    check_variance(weights, variance, 0.1)
    assert variance <= (2 + 3**degree) / size * N**degree


@pytest.mark.parametrize("size", [2, 3])
def test_the_variance_of_tensor_is_exact_over_all_hashes(size):
    # Two coordinates, two factors: every choice of buckets and signs can be tried.
    q, k = Q[:2], K[:2]
    found = []
    for buckets in itertools.product(range(size), repeat=4):
        for signs in itertools.product((-1.0, 1.0), repeat=4):
            sketches = torch.zeros(2, 2, size, dtype=torch.float64)  # of q and k, one per factor
            for x, sketch in zip((q, k), sketches, strict=True):
                for i, (bucket, sign) in enumerate(zip(buckets, signs, strict=True)):
                    sketch[i // 2, bucket] += sign * x[i % 2]
            one, two = torch.fft.fft(sketches).prod(dim=1)
            found.append(float((torch.fft.ifft(one).real * torch.fft.ifft(two).real).sum()))
    weights = torch.tensor(found, dtype=torch.float64)
    assert float(weights.mean()) == pytest.approx(float(q @ k) ** 2, rel=1e-9)
    variance = float(tensor_variance(q, k, 2, size))
    assert float(weights.var(correction=0)) == pytest.approx(variance, rel=1e-9)


def test_nonnegative_is_lifted_by_the_variance_of_its_root():
    weights = drawn(NonnegativeFeatures, 4, 36)
    lift = float(product_variance(torch.tensor(X), torch.tensor(N), 2, 6))
    check_mean(weights, X**4 + lift)
    assert lift > 2 * X**4  # the smear is no detail at this size
    assert float(weights.min()) >= 0


@pytest.mark.parametrize("make", [ProductFeatures, TensorFeatures])
def test_the_bias_is_one_coordinate_more(make):
    check_mean(drawn(make, 2, 24, 0.7), (0.7 + X) ** 2)


@pytest.mark.parametrize("kind", ["tensor", "product", "nonnegative"])
def test_short_ways_to_weights_equal_the_features(kind, rng):
    features = poly_sketch(4, 49, kind, rng=1, bias=0.3).features
    q, k = (torch.randn(2, 7, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    assert torch.allclose(features.weights(q, k), features.queries(q) @ features.keys(k).mT)
    assert features.keys(k).shape[-1] == features.n_features(5)


def test_tensor_is_the_convolution_of_count_sketches(rng):
    features = TensorFeatures(2, 8, 5)
    one = torch.eye(6, dtype=torch.float64)
    first = TensorFeatures(1, 8, 5)  # not the same draw; any sketch of degree 1 has one signed one per row
    assert torch.equal(first.keys(one).round(decimals=9).abs().sum(-1), torch.ones(6).double())
    squares = features.keys(one)  # e_i (x) e_i falls into one bucket, with one sign
    assert torch.allclose(squares.abs().sum(-1), torch.ones(6).double())


@pytest.mark.parametrize(("width", "degree"), [(1, 4), (3, 2), (5, 4), (7, 6)])
def test_monomials_multiply_to_the_series(width, degree, rng):
    q, k = (torch.randn(9, width, generator=rng, dtype=torch.float64) for _ in range(2))
    for features in (taylor_features(degree), power_features(degree, 0.7), power_features(degree, 0)):
        direct = features.queries(q) @ features.keys(k).mT
        assert torch.allclose(direct, features.weights(q, k), rtol=1e-9, atol=1e-9)
        assert features.keys(k).shape[-1] == features.n_features(width)


def test_the_taylor_start_is_never_negative():
    x = torch.linspace(-30, 30, 6001, dtype=torch.float64)[:, None]
    for degree in (2, 4, 8):
        assert float(taylor_features(degree).weights(x, torch.ones(1, 1).double()).min()) > 0


@pytest.mark.parametrize("degree", [-2, 0, 1, 3, 5])
def test_odd_degrees_are_refused(degree):
    from winnow.attention import polynomial, taylor

    for make in (polynomial, taylor, lambda degree: poly_sketch(degree, 16, rng=0)):
        with pytest.raises(UsageError, match="expected 2, 4, 6"):
            make(degree)


@pytest.mark.usefixtures("gate_alone")
def test_wrong_options_are_refused():
    from winnow.attention import linear, polynomial

    for make, says in [
        (lambda: polynomial(2, -0.1), "bias is -0.1"),
        (lambda: polynomial(2, float("nan")), "bias is nan"),
        (lambda: linear("relu"), "expected one of elu, degree-1"),
        (lambda: poly_sketch(2, 0, rng=0), "size is 0"),
        (lambda: poly_sketch(4, 60, "nonnegative", rng=0), "such as 64"),
        (lambda: poly_sketch(2, 64, "fourier", rng=0), "expected one of tensor, product"),
        (lambda: poly_sketch(2, 64, rng=-1), "seed is -1"),
    ]:
        with pytest.raises(UsageError, match=says):
            make()


def test_a_state_beyond_memory_is_refused_before_it_is_made():
    from winnow.attention import taylor

    with pytest.raises(ResourceError, match="smaller degree or poly_sketch"):
        taylor(12).start(1, 1, 128, 128)
