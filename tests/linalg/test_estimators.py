"""The estimators pass scikit-learn's own checks and agree with its models."""

import numpy as np
import pytest
import scipy.sparse

pytest.importorskip("sklearn")
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from winnow.base.errors import UsageError
from winnow.linalg.estimators import SketchedLinearRegression, SketchedRidge


@parametrize_with_checks(
    [SketchedLinearRegression(), SketchedRidge(), SketchedRidge(method="gram", eps=1e-9)]
)
def test_scikit_learn_checks(estimator, check):
    check_(estimator, check)


def check_(estimator, check):
    check(estimator)


RNG = np.random.default_rng(0)
X = RNG.standard_normal((600, 7)) + 5
Y = X @ RNG.standard_normal((7, 2)) + RNG.standard_normal((600, 2)) + 3
WEIGHTS = RNG.random(600)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("y", [Y, Y[:, 0]], ids=["two", "one"])
@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("method", ["auto", "gram", "sketch"])
def test_agrees_with_scikit_learn(form, y, fit_intercept, weights, method):
    pairs = [
        (SketchedLinearRegression(fit_intercept=fit_intercept, method=method), LinearRegression),
        (SketchedRidge(alpha=13.0, fit_intercept=fit_intercept, method=method), lambda **o: Ridge(13.0, **o)),
    ]
    for ours, theirs in pairs:
        found = ours.fit(form(X), y, weights)
        expected = theirs(fit_intercept=fit_intercept).fit(X, y, weights)
        np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-9)
        np.testing.assert_allclose(found.intercept_, expected.intercept_, atol=1e-8)
        np.testing.assert_allclose(found.predict(form(X)), expected.predict(X), atol=1e-8)
        assert found.score(form(X), y) == pytest.approx(expected.score(X, y))


def test_eps_is_certified():
    found = SketchedRidge(eps=0.01, method="sketch").fit(X, Y)
    assert found.result_.eps_certified <= 0.01


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), "1"])
def test_refuses_an_alpha(alpha):
    with pytest.raises(UsageError, match="alpha"):
        SketchedRidge(alpha=alpha).fit(X, Y)
