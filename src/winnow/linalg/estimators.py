"""Estimators: lstsq as scikit-learn's linear models.   (floor 2 · linalg)

Needs the extra `learn`. Import them from here: `winnow.linalg` itself works without scikit-learn.
"""

from typing import Any, Literal

import numpy as np
import scipy.sparse

try:
    from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("this needs scikit-learn: pip install 'winnow-llm[learn]'") from error

from winnow.base.errors import UsageError
from winnow.linalg.least_squares import lstsq


class _Linear(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """What both have in common: centring, weights, and a call of `lstsq`."""

    eps: float | None
    fit_intercept: bool
    method: Literal["auto", "gram", "sketch", "lapack"]
    random_state: Any

    def predict(self, X: Any) -> np.ndarray:
        """Return ``X @ coef_.T + intercept_``."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", reset=False)
        return np.asarray(X @ self.coef_.T) + self.intercept_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _fit(self, X: Any, y: Any, weights: Any, ridge: float) -> None:
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32], y_numeric=True, multi_output=True
        )
        y = np.asarray(y, np.float64)
        roots = (
            None if weights is None else np.sqrt(_check_sample_weight(weights, X, ensure_non_negative=True))
        )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if scipy.sparse.issparse(X):
            found = self._fit_sparse(X, y, roots, ridge, seed)
        else:
            found = self._fit_dense(X, y, roots, ridge, seed)
        self.coef_, self.intercept_, self.result_ = found
        self.n_iter_ = max(1, self.result_.passes_over_A)

    def _fit_dense(self, X: np.ndarray, y: np.ndarray, roots: Any, ridge: float, seed: int) -> tuple:
        shares = None if roots is None else np.square(roots)
        x_mean = np.average(X, axis=0, weights=shares) if self.fit_intercept else np.zeros(X.shape[1])
        y_mean = np.average(y, axis=0, weights=shares) if self.fit_intercept else np.zeros(y.shape[1:])
        if self.fit_intercept:
            X, y = X - x_mean.astype(X.dtype), y - y_mean
        if roots is not None:
            X, y = X * roots[:, None].astype(X.dtype), (y.T * roots).T
        result = lstsq(X, y, eps=self.eps, ridge=ridge, method=self.method, rng=seed)
        coef = np.asarray(result.x, np.float64).T
        return coef.astype(X.dtype), y_mean - coef @ x_mean, result

    def _fit_sparse(self, X: Any, y: np.ndarray, roots: Any, ridge: float, seed: int) -> tuple:
        """Fit with a column of ones, which is not shrunk: centring would fill the matrix."""
        d = X.shape[1]
        shrink = np.full(d + self.fit_intercept, ridge)
        if self.fit_intercept:
            X = scipy.sparse.hstack([X, np.ones((X.shape[0], 1))], format="csr")
            shrink[-1] = 0.0
        if roots is not None:
            X, y = scipy.sparse.diags_array(roots) @ X, (y.T * roots).T
        result = lstsq(X, y, eps=self.eps, ridge=shrink, method=self.method, rng=seed)
        coef = np.asarray(result.x, np.float64).T
        return coef[..., :d], coef[..., -1] if self.fit_intercept else np.zeros(coef.shape[:-1]), result


class SketchedLinearRegression(_Linear):
    """Ordinary least squares by `winnow.linalg.lstsq`: certified to `eps`, or to rounding where it is None.

    Of several solutions the one of least norm, after centring. A sparse X is never filled: its intercept is
    one more column. ``result_`` is the `Result`, with `eps_certified`; ``n_iter_`` counts the passes over X.
    """

    def __init__(
        self,
        *,
        eps: Any = None,
        fit_intercept: Any = True,
        method: Any = "auto",
        random_state: Any = 0,
    ) -> None:
        self.eps = eps
        self.fit_intercept = fit_intercept
        self.method = method
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> _Linear:
        """Fit to X [N, D] and y [N] or [N, K]; rows count `sample_weight` times."""
        self._fit(X, y, sample_weight, 0.0)
        return self


class SketchedRidge(_Linear):
    """Ridge regression by `winnow.linalg.lstsq`: ``|y - X w|^2 + alpha |w|^2``, the intercept not shrunk.

    ``result_`` is the `Result`, with `eps_certified`; ``n_iter_`` counts the passes over X.
    """

    def __init__(
        self,
        alpha: Any = 1.0,
        *,
        eps: Any = None,
        fit_intercept: Any = True,
        method: Any = "auto",
        random_state: Any = 0,
    ) -> None:
        self.alpha = alpha
        self.eps = eps
        self.fit_intercept = fit_intercept
        self.method = method
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> _Linear:
        """Fit to X [N, D] and y [N] or [N, K]; rows count `sample_weight` times."""
        if not isinstance(self.alpha, int | float | np.number) or not 0 <= self.alpha < np.inf:
            raise UsageError(f"alpha is {self.alpha!r}, expected a finite number of 0 or more.")
        self._fit(X, y, sample_weight, float(self.alpha))
        return self
