"""Derivatives: the closed forms against autograd and against differences, in float64."""

import numpy as np
import pytest
import torch

from tests.linalg.two_layer.cases import everyday, inner_matrix, somewhere
from winnow.linalg.two_layer.problem import checked_problem
from winnow.linalg.two_layer.reference import two_layer_loss_reference

SEEDS = range(12)


def tensors(problem):
    arrays = (problem.A1, problem.A2, problem.b, problem.w)
    return [torch.from_numpy(np.array(array)) for array in arrays]


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_gradient_and_hessian_agree_with_autograd_of_the_definition(seed):
    point = somewhere(everyday(seed), seed)
    x = torch.from_numpy(point.x).requires_grad_()
    arrays = tensors(point.problem)
    loss = two_layer_loss_reference(x, *arrays)
    gradient = torch.autograd.grad(loss, x)[0].numpy()
    hessian = torch.autograd.functional.hessian(lambda at: two_layer_loss_reference(at, *arrays), x).numpy()
    assert point.loss == pytest.approx(loss.item(), rel=1e-14)
    np.testing.assert_allclose(point.gradient, gradient, atol=1e-12 * np.abs(gradient).max())
    np.testing.assert_allclose(point.hessian(), hessian, atol=1e-12 * np.abs(hessian).max())


@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_and_hessian_products_agree_with_central_differences(seed):
    point = somewhere(everyday(seed), seed)
    direction = np.random.default_rng(seed + 100).normal(size=len(point.x))
    step = 1e-5
    above, below = (point.problem.at(point.x + sign * step * direction) for sign in (1, -1))
    assert (above.is_on == below.is_on).all()
    slope = (above.loss - below.loss) / (2 * step)
    bent = (above.gradient - below.gradient) / (2 * step)
    assert slope == pytest.approx(point.gradient @ direction, abs=1e-8)
    np.testing.assert_allclose(point.hessian_times(direction), bent, atol=1e-7 * np.abs(bent).max())


@pytest.mark.parametrize("seed", SEEDS)
def test_products_matrix_and_diagonal_are_those_of_the_inner_matrix(seed):
    point = somewhere(everyday(seed), seed)
    B, A1 = inner_matrix(point), point.problem.A1
    direction = np.random.default_rng(seed).normal(size=len(point.x))
    np.testing.assert_allclose(point.hessian(), A1.T @ B @ A1, atol=1e-11)
    np.testing.assert_allclose(point.hessian_times(direction), A1.T @ (B @ (A1 @ direction)), atol=1e-11)
    np.testing.assert_allclose(point.diagonal(), np.maximum(np.diagonal(B), 0.0), atol=1e-13)


def test_logits_that_would_overflow_an_exponential_do_not():
    problem = checked_problem([[800.0], [-800.0], [799.0]], np.eye(3), [0.1, 0.2, 0.3], 0.0)
    point = problem.at(np.ones(1))
    assert point.is_finite
    np.testing.assert_allclose(point.f, [1 / (1 + np.exp(-1)), 0.0, 1 / (1 + np.e)], atol=1e-15)


def test_no_array_of_rows_times_rows_is_made():
    n_rows = 30_000  # an N x N matrix of these would hold 7 GB
    problem = everyday(3, n_rows=n_rows, n_columns=3, n_outputs=2)
    point = somewhere(problem, 3, size=0.1)
    trace = np.trace(point.hessian())
    columns = [point.hessian_times(unit)[place] for place, unit in enumerate(np.eye(3))]
    assert sum(columns) == pytest.approx(trace, rel=1e-10)
