"""Least-squares problems whose solution, condition and residual are known."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Known:
    a: np.ndarray
    b: np.ndarray
    x: np.ndarray


def known(n: int, d: int, cond: float = 1.0, residual: float = 1.0, seed: int = 0) -> Known:
    """Singular values spaced evenly in logarithm from 1 to 1 / cond; |x| = 1; |b - A x| = residual."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((n, d)))[0]
    v = np.linalg.qr(rng.standard_normal((d, d)))[0]
    a = (u * np.logspace(0, -np.log10(cond), d)) @ v.T
    x, off = rng.standard_normal(d), rng.standard_normal(n)
    x, off = x / np.linalg.norm(x), off - u @ (u.T @ off)
    return Known(a, a @ x + residual * off / np.linalg.norm(off), x)


def spiked(n: int, d: int, seed: int = 0, size: float = 1e4) -> Known:
    """Noise, and d rows far larger than the rest, each alone in its column: leverage nearly 1."""
    rng = np.random.default_rng(seed)
    a, x = rng.standard_normal((n, d)), rng.standard_normal(d)
    rows = rng.choice(n, d, replace=False)
    a[rows] = size * np.eye(d)
    return Known(a, a @ x + rng.standard_normal(n), x)


def excess(problem: Known, x: np.ndarray, ridge: float = 0.0) -> float:
    """The true eps: |A x - b|^2 / min - 1, from |A (x - best)|^2 so that nothing cancels."""
    d = problem.a.shape[1]
    a = np.concatenate([problem.a, np.sqrt(ridge) * np.eye(d)])
    b = np.concatenate([problem.b, np.zeros(d)])
    best = np.linalg.lstsq(a, b, rcond=None)[0]
    return float(np.sum(np.square(a @ (x - best))) / np.sum(np.square(a @ best - b)))


def backward_error(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> float:
    """Karlson and Walden's estimate, with the singular values of A itself; relative to |A|."""
    r = b - a @ x
    _, s, vt = np.linalg.svd(a, full_matrices=False)
    far = np.sqrt(np.square(s * np.linalg.norm(x)) + r @ r)
    return float(np.linalg.norm(vt @ (a.T @ r) / far) / np.linalg.norm(s))


def as_numpy(x: object) -> np.ndarray:
    return x.numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
