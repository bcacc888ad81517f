"""Problem: the loss of a softmax layer under a ReLU layer, and its derivatives.   (floor 2 · linalg)

    z = A1 x    f = softmax(z)    h = A2 f    s = [h > 0]    c = relu(h) - b

    L        = 1/2 ||c||^2 + 1/2 ||w * z||^2
    gradient = A1^T (q + w^2 * z)
    Hessian  = A1^T B A1
    B        = P A2^T diag(s) A2 P  +  diag(q) - q f^T - f q^T  +  diag(w^2)
               Gauss-Newton            curvature                   weights

with ``p = A2^T (s * c)``, ``q = f * (p - f.p)``, ``P = diag(f) - f f^T``. B is a diagonal and a matrix of
rank outputs + 2: nothing here is ever N x N. At a kink (``h_i = 0``) the derivative from below is taken.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from winnow.base.errors import UsageError
from winnow.linalg.two_layer.products import Products, Square, Vector, dot


@dataclass(frozen=True)
class Problem:
    """One regression: A1 [N M], A2 [outputs N], b [outputs], w [N]; checked, float64, never written to."""

    A1: Float[np.ndarray, "N M"]
    A2: Float[np.ndarray, "outputs N"]
    b: Float[np.ndarray, " outputs"]
    w: Float[np.ndarray, " N"]
    threads: int

    @cached_property
    def products(self) -> Products:
        """What reads A1 and A2."""
        return Products(self.A1, self.A2, self.threads)

    @cached_property
    def w2(self) -> Vector:
        """The squared weights."""
        return self.w * self.w

    @cached_property
    def weight_gram(self) -> Square:
        """``A1^T W^2 A1``: the part of every Hessian that does not depend on x. N M^2 operations, once."""
        return self.products.gram(self.w2)

    def at(self, x: Vector) -> "Point":
        """Return the loss and the gradient at `x`: two passes over A1 and two over A2.

        The softmax is shifted by its largest logit, so it neither overflows nor divides by zero. Where the
        logits themselves overflow the loss is infinite.
        """
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            z = self.products.logits(x)
            if not np.isfinite(z).all():
                return Point(self, x, z, z, z, z, np.inf, z, np.full_like(x, np.nan))
            f = np.exp(z - z.max())
            f /= f.sum()
            h = self.products.outputs(f)
            c = np.maximum(h, 0.0) - self.b
            weighted = self.w * z
            loss = 0.5 * dot(c, c) + 0.5 * dot(weighted, weighted)
            q, gradient = self.pulled(z, f, np.where(h > 0.0, c, 0.0))
        return Point(self, x, z, f, h, c, loss if np.isfinite(loss) else np.inf, q, gradient)

    def pulled(self, z: Vector, f: Vector, forces: Vector) -> tuple[Vector, Vector]:
        """Return q and the gradient where output i pulls with ``forces_i``: c_i if it is on, else 0."""
        p = self.products.outputs_back(forces)
        q = f * (p - dot(f, p))
        return q, self.products.back(q + self.w2 * z)


@dataclass(frozen=True)
class Point:
    """What is known of the loss at one `x`; the letters are those of the module."""

    problem: Problem
    x: Vector
    z: Vector
    f: Vector
    h: Vector
    c: Vector
    loss: float
    q: Vector
    gradient: Vector

    @property
    def gradient_norm(self) -> float:
        """The 2-norm of the gradient."""
        return float(np.linalg.norm(self.gradient))

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.gradient).all())

    @property
    def is_on(self) -> np.ndarray:
        """Which outputs the ReLU passes: the pattern inside which the loss is smooth."""
        return self.h > 0.0

    @property
    def gradient_rounding(self) -> float:
        """About the error of `gradient_norm` by rounding: below it, smaller gradients are noise."""
        problem = self.problem
        terms = np.abs(self.q) + problem.w2 * np.abs(self.z)
        size = np.sqrt(dot(terms, terms) * float(np.square(problem.A1).sum()))
        return float(np.finfo(np.float64).eps * size)

    def output_slopes(self, which: np.ndarray) -> Float[np.ndarray, "which M"]:
        """Return the derivatives of the outputs `which`, on or off, rows of ``A2 P A1``."""
        products = self.problem.products
        moved = products.times_rows(self.problem.A2[which] * self.f)
        return moved - np.outer(self.h[which], products.back(self.f))

    def hessian_times(self, direction: Vector) -> Vector:
        """Return ``Hessian @ direction``: two passes over A1 and two over A2."""
        problem, f, q = self.problem, self.f, self.q
        v = problem.products.logits(direction)
        mean = dot(f, v)
        moved = problem.products.outputs(f * (v - mean))
        back = problem.products.outputs_back(np.where(self.is_on, moved, 0.0))
        gauss_newton = f * (back - dot(f, back))
        curvature = q * v - q * mean - f * dot(q, v)
        return problem.products.back(gauss_newton + curvature + problem.w2 * v)

    def jacobian(self) -> Float[np.ndarray, "on M"]:
        """Return the derivative of the outputs that are on, ``A2 P A1``. on N M operations."""
        return self.output_slopes(np.flatnonzero(self.is_on))

    def gauss_newton(self) -> Square:
        """Return the positive semi-definite part of the Hessian: Gauss-Newton and weights."""
        return self.problem.products.gram_of(self.jacobian()) + self.problem.weight_gram

    def curvature(self) -> Square:
        """Return what the bending of the softmax adds to the Hessian; indefinite. N M^2 operations."""
        products = self.problem.products
        cross = np.outer(products.back(self.q), products.back(self.f))
        return products.gram(self.q) - cross - cross.T

    def hessian(self) -> Square:
        """Return the whole Hessian, M x M. N M (M + outputs) operations."""
        return self.gauss_newton() + self.curvature()

    def diagonal(self) -> Vector:
        """Return the diagonal of B, negative entries cut to 0: the D of the sampled Hessian ``A1^T D A1``."""
        problem, f, on = self.problem, self.f, self.is_on
        rows, h = problem.A2[on], np.where(on, self.h, 0.0)
        # sum over j of (A2_ji - h_j)^2, its square written out so that no copy of A2 is made
        spread = np.einsum("ji,ji->i", rows, rows) - 2.0 * problem.products.outputs_back(h) + dot(h, h)
        return np.maximum(f * f * np.maximum(spread, 0.0) + self.q * (1.0 - 2.0 * f) + problem.w2, 0.0)


def checked_problem(A1: object, A2: object, b: object, w: object, threads: int = 1) -> Problem:
    """Return the problem that the arguments state, or raise UsageError for the first that is off.

    `w` may be one number for all rows. Arguments are neither changed nor kept if they must be converted.
    """
    first, second = real_array("A1", A1, 2), real_array("A2", A2, 2)
    n_rows, n_outputs = first.shape[0], second.shape[0]
    if second.shape[1] != n_rows:
        raise UsageError(
            f"A2 has {second.shape[1]} columns, A1 has {n_rows} rows; expected as many, for A2 softmax(A1 x)."
        )
    targets = real_array("b", b, 1)
    if len(targets) != n_outputs:
        raise UsageError(
            f"b has {len(targets)} entries, A2 has {n_outputs} rows; expected one target per row."
        )
    weights = real_array("w", w, 0, 1)
    if weights.ndim and len(weights) != n_rows:
        raise UsageError(
            f"w has {len(weights)} entries, A1 has {n_rows} rows; give one number or one per row."
        )
    return Problem(first, second, targets, np.broadcast_to(weights, n_rows), threads)


def real_array(name: str, value: object, *ndims: int) -> np.ndarray:
    """Return `value` as a float64 array with one of `ndims` axes, or raise UsageError saying what it is."""
    axes = " or ".join(map(str, ndims))
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name} is no array ({error}); give numbers in {axes} dimensions.") from None
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{name} holds {array.dtype}, expected real numbers: convert it to float64.")
    if array.ndim not in ndims:
        raise UsageError(f"{name} has {array.ndim} dimensions, expected {axes}: reshape it.")
    if array.size == 0:
        raise UsageError(f"{name} is empty (shape {array.shape}); expected at least one entry per axis.")
    if not np.isfinite(array).all():
        raise UsageError(f"{name} holds NaN or infinity, expected finite numbers: clean it first.")
    return array.astype(np.float64, copy=False)
