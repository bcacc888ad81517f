"""Continuous: inputs X behind softmax maps of known matrices, where no vocabulary helps.   (floor 5 · audit)

B = softmax of the rows of S = X^T W X, X of D numbers for each of T tokens. The logarithm loses each row's
offset and nothing else: with C = I - 1 1^T / T,

    log(B) C = X^T W X C            exact, a quadratic system in X

R(X) = (X^T W X) C - log(B) C over all heads is made small by Gauss-Newton steps with Levenberg-Marquardt
damping; each row is centred over what it shows, so causal maps are served alike. A start is needed: from
random ones the steps end in false minima. After arXiv:2310.12462 (abstract), construction ours.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float64
from scipy.sparse.linalg import LinearOperator, lsqr

from winnow.base.errors import UsageError

STEPS = 60
SMALLEST_SHOWN = 1e-30  # its logarithm is the last one taken
DENSE = 1500  # unknowns up to which the Jacobian is written down, once
WRITTEN = 400  # and at every step


@final
@dataclass(frozen=True, eq=False)
class Inverted:
    """Inputs found, the root mean square of what the equations leave, and how many steps it took.

    A small residual says that these inputs make these maps, not that no others do: see `ambiguity`.
    """

    x: Float64[np.ndarray, "D T"]
    residual: float
    steps: int


@final
@dataclass(frozen=True, eq=False)
class Heads:
    """The system of one layer: matrices W of its heads, and their maps."""

    w: Float64[np.ndarray, "H D D_key"]
    maps: Float64[np.ndarray, "H_shown T T_seen"]

    def __post_init__(self) -> None:
        """Refuse matrices and maps that do not belong together, or are no probabilities."""
        w, b = self.w.shape, self.maps.shape
        if w[0] != b[0] or w[1] != w[2] or b[1] != b[2]:
            raise UsageError(f"w has shape {w}, maps {b}; expected (H, D, D) and (H, T, T).")
        if not (np.isfinite(self.w).all() and np.isfinite(self.maps).all() and (self.maps >= 0).all()):
            raise UsageError(
                "w or maps hold NaN, infinity or negative entries; expected finite, maps from 0."
            )

    @property
    def shown(self) -> Bool[np.ndarray, "H T T"]:
        """Entries whose logarithm counts."""
        return self.maps > SMALLEST_SHOWN

    def centred(self, scores: Float64[np.ndarray, "H T T"]) -> Float64[np.ndarray, "H T T"]:
        """Take each row's mean over its shown entries away; what is not shown becomes 0."""
        kept = np.where(self.shown, scores, 0.0)
        mean = kept.sum(-1, keepdims=True) / np.maximum(self.shown.sum(-1, keepdims=True), 1)
        return np.where(self.shown, scores - mean, 0.0)

    def targets(self) -> Float64[np.ndarray, "H T T"]:
        """Return the centred logarithms of the maps."""
        return self.centred(np.log(np.maximum(self.maps, SMALLEST_SHOWN)))

    def residual(self, x: Float64[np.ndarray, "D T"]) -> Float64[np.ndarray, "H T T"]:
        """Return the centred scores of `x` less those of the maps."""
        return self.centred(x.T @ self.w @ x) - self.targets()

    def push(self, x: Float64[np.ndarray, "D T"], v: Float64[np.ndarray, "D T"]) -> np.ndarray:
        """Return the change of the residual along `v`: J v = (V^T W X + X^T W V) C."""
        return self.centred(v.T @ self.w @ x + x.T @ self.w @ v)

    def pull(self, x: Float64[np.ndarray, "D T"], r: Float64[np.ndarray, "H T T"]) -> np.ndarray:
        """Return J^T r: with E = r C the sum over heads of W X E^T + W^T X E."""
        e = self.centred(r)
        w_t = np.swapaxes(self.w, 1, 2)
        return (self.w @ x @ np.swapaxes(e, 1, 2) + w_t @ x @ e).sum(0)

    def jacobian(self, x: Float64[np.ndarray, "D T"]) -> Float64[np.ndarray, "M N"]:
        """Return J written down: rows are entries of the maps, columns those of X."""
        eye = np.eye(x.size).reshape(-1, *x.shape)
        return np.stack([self.push(x, v).ravel() for v in eye], axis=1)


def invert(heads: Heads, start: Float64[np.ndarray, "D T"], *, steps: int = STEPS) -> Inverted:
    """Return the inputs that `start` leads to, by damped Gauss-Newton steps on the logarithms of the maps.

    A step solves its normal equations, above 400 unknowns by LSQR, ``O(H T D (T + D))`` an iteration. Ends
    when the residual is at rounding or no step lowers it. Where the true inputs are far from `start` it ends
    elsewhere, which its residual shows. Raises UsageError for a start of another shape.
    """
    if start.shape != (heads.w.shape[1], heads.maps.shape[1]):
        raise UsageError(
            f"start has shape {start.shape}; expected {(heads.w.shape[1], heads.maps.shape[1])}."
        )
    x, damping = start.copy(), 1e-3
    r = heads.residual(x)
    cost, taken = float((r**2).sum()), 0
    scale = float((heads.targets() ** 2).sum()) + 1e-300
    while taken < steps and cost > 1e-26 * scale and damping < 1e8:
        taken += 1
        moved = x + _step(heads, x, r, damping)
        tried = heads.residual(moved)
        lower = float((tried**2).sum())
        if lower < cost:
            x, r, cost, damping = moved, tried, lower, max(damping / 8, 1e-12)
        else:
            damping *= 6
    n_shown = max(int(heads.shown.sum()), 1)
    return Inverted(x, (cost / n_shown) ** 0.5, taken)


def _step(heads: Heads, x: np.ndarray, r: np.ndarray, damping: float) -> np.ndarray:
    if x.size <= WRITTEN:
        jacobian = heads.jacobian(x)
        normal = jacobian.T @ jacobian
        normal.flat[:: x.size + 1] += damping * normal.trace() / x.size
        return -np.linalg.solve(normal, jacobian.T @ r.ravel()).reshape(x.shape)
    forth, back = heads.push, heads.pull
    operator = LinearOperator(  # pyright: ignore[reportCallIssue] (its stub knows the subclasses alone)
        (r.size, x.size),
        matvec=lambda v: forth(x, v.reshape(x.shape)).ravel(),  # pyright: ignore[reportCallIssue]
        rmatvec=lambda e: back(x, e.reshape(r.shape)).ravel(),  # pyright: ignore[reportCallIssue]
        dtype=np.float64,  # pyright: ignore[reportCallIssue]
    )
    strength = float(np.sqrt(damping * (heads.pull(x, r) ** 2).mean()))
    found = lsqr(operator, -r.ravel(), damp=strength, atol=1e-12, btol=1e-12, iter_lim=2 * x.size)
    return found[0].reshape(x.shape)


def spectral_start(
    w: Float64[np.ndarray, "D D"], maps: Float64[np.ndarray, "T T"]
) -> Float64[np.ndarray, "D T"]:
    """Return inputs that make the full map of one head whose W = L L^T is symmetric and positive.

    S is log B + c 1^T with c up to one constant from ``log B_ij - log B_ji``; that constant is the one that
    brings S back to the rank of W, which needs T > D + 1. L^T X follows from the eigenvectors of S. Exact up
    to an orthogonal map, X -> L^-T O L^T X: the maps do not say which (`align` takes it from anchors). Raises
    UsageError for a W that is not symmetric and positive, too few tokens, or a map with zeros.
    """
    d, n = len(w), len(maps)
    values, vectors = np.linalg.eigh((w + w.T) / 2)
    if np.abs(w - w.T).max() > 1e-8 * np.abs(w).max() or values.min() <= 0:
        raise UsageError("w is not symmetric and positive; expected so. Start others by invert.")
    if n <= d + 1 or not (maps > SMALLEST_SHOWN).all():
        raise UsageError(f"{n} tokens of width {d}, or a zero in the map; expected more than {d + 1}, full.")
    logs = np.log(maps)
    c = (logs - logs.T).mean(0)  # c_j - mean(c), as the mean over i of log B_ij - log B_ji
    s = logs + c[:, None]
    s = (s + s.T) / 2
    ones = np.ones(n)
    s += -1 / (ones @ np.linalg.pinv(s, rcond=1e-10) @ ones)
    top, basis = np.linalg.eigh(s)
    y = np.sqrt(np.maximum(top[-d:], 0))[:, None] * basis[:, -d:].T
    root = vectors * np.sqrt(values) @ vectors.T
    return np.linalg.solve(root, y)


def align(
    found: Float64[np.ndarray, "D T"],
    w: Float64[np.ndarray, "D D"],
    anchors: Float64[np.ndarray, "D K"],
    places: tuple[int, ...],
) -> Float64[np.ndarray, "D T"]:
    """Return `found` turned so that its columns at `places` are nearest to the known `anchors` (Procrustes).

    Turns within what leaves the map of a symmetric positive `w` as it is.
    """
    values, vectors = np.linalg.eigh((w + w.T) / 2)
    root = vectors * np.sqrt(values) @ vectors.T
    left, _, right = np.linalg.svd((root @ anchors) @ (root @ found[:, list(places)]).T)
    return np.linalg.solve(root, left @ right @ root @ found)


def closed_form(
    probabilities: Float64[np.ndarray, "T T"],
    values: Float64[np.ndarray, "D D"],
    output: Float64[np.ndarray, "T D"],
) -> Float64[np.ndarray, "D T"]:
    """Return X where a head's probabilities P and its output Y = P X^T V are both seen: V^-T (P^-1 Y)^T.

    Exact up to cond(P) cond(V) times rounding; causal P are triangular with a positive diagonal. Raises
    UsageError where P or V has no inverse in double precision.
    """
    for name, matrix in (("probabilities", probabilities), ("values", values)):
        if np.linalg.cond(matrix) > 1e14:
            raise UsageError(f"{name} has no inverse in double precision; expected one. Take another head.")
    return np.linalg.solve(values.T, np.linalg.solve(probabilities, output).T)
