"""Cost: which method is likely the quickest here, from rates measured once per process.   (floor 2 · linalg)

A model, not a promise: the rates are those of the moment when they were measured (about 0.2 s), and a problem
near a crossover may go either way. Name the method where the same bits are wanted on another day.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from winnow.kernels.row_sketch import TILE, open_passes

NONZEROS = 8
LEAST_HEIGHT = 1024
SMALL = 3e6  # rows x columns^2 below which LAPACK is not worth asking the model about: a millisecond


@dataclass(frozen=True)
class Rates:
    """Seconds per unit of work, and per call."""

    gram: float  # row x column^2
    sketch: float  # row x column
    sketch_row: float  # height x column, per batch of 2048 rows
    read: float  # row x column, one pass
    lapack: float  # row x column^2
    lapack_read: float  # row x column
    cube: float  # column^3, LAPACK's part that does not depend on rows
    call: float


@dataclass(frozen=True)
class Estimate:
    """Seconds that each method is expected to take."""

    lapack: float
    gram: float
    sketch: float


def estimate(shape: tuple[int, int], columns_b: int, eps: float | None, rates: Rates) -> Estimate:
    """Return the expected times of a dense problem."""
    n, d = shape
    passes, height = _passes(shape, eps)
    read = rates.read * n * d * (1 + 0.6 * (columns_b - 1))
    own = rates.gram * d**3 + 20 * rates.call
    sketch = (
        rates.sketch * n * d
        + rates.sketch_row * height * d * max(1.0, n / 2048)
        + rates.gram * height * d * d
    )
    return Estimate(
        lapack=(rates.lapack * d + rates.lapack_read) * n * d + rates.cube * d**3 + rates.call,
        gram=rates.gram * n * d * d + own + 7 * read,
        sketch=sketch + own + 20 * rates.call + passes * read,
    )


def sketch_height(shape: tuple[int, int], eps: float | None, *, is_far: bool = False) -> int:
    """Return the rows of a sketch, a multiple of its nonzeros: 8 D, or 16 D where passes are dear.

    With `eps` at least LEAST_HEIGHT: with fewer the certificate's margin alone would triple it.
    """
    n, d = shape
    times = 16 if is_far or (eps is None and n >= 64 * d) else 8
    height = max(times * d, 512 if eps is None else LEAST_HEIGHT)
    return -(-height // NONZEROS) * NONZEROS


def _passes(shape: tuple[int, int], eps: float | None) -> tuple[int, int]:
    """Return how many passes a sketch takes after its own, and its height."""
    height = sketch_height(shape, eps)
    rate = np.log(height / shape[1])  # by which a step divides eps
    if eps is None:
        return 4 + round(2 * np.log(1e32) / rate), height
    return 2 + max(0, int(np.ceil(np.log(2.5 * shape[1] / height / eps) / rate))), height


@functools.lru_cache(maxsize=8)
def measured_rates(threads: int) -> Rates:
    """Measure this machine with `threads` threads of ours and the BLAS as it is set: 0.2 s, once."""
    passes, draw = open_passes(threads), np.random.Generator(np.random.Philox(0))
    n, d = 4096, 192
    a = draw.standard_normal((n, d))
    big = draw.standard_normal((1 << 16, d))
    height = 8 * d
    out, tiles = np.zeros((d, d)), np.zeros((d // TILE, height, TILE))
    low = np.zeros((d // TILE, 512, TILE))
    x, y, squares = np.ones((1, d)), np.zeros((1, d)), np.zeros(1)
    gram = _least(lambda: passes.gram(a, out))
    read = _least(lambda: passes.normal(big, x, None, y, squares))
    flat = _least(lambda: passes.sketch(big[: 1 << 14], 0, 0, NONZEROS, low))
    tall = _least(lambda: passes.sketch(big[: 1 << 14], 0, 0, NONZEROS, tiles))
    per_height = max(tall - flat, 0.1 * flat) / ((height - 512) * d * (1 << 14) / 2048)
    square, wide, thin = a[:d], a, np.ascontiguousarray(big[:, :8])
    t_square = _least(lambda: np.linalg.lstsq(square, square[:, 0], rcond=None))
    t_wide = _least(lambda: np.linalg.lstsq(wide, wide[:, 0], rcond=None))
    t_thin = _least(lambda: np.linalg.lstsq(thin, thin[:, 0], rcond=None))
    return Rates(
        gram=gram / (n * d * d),
        sketch=flat / ((1 << 14) * d),
        sketch_row=per_height,
        read=read / big.size,
        lapack=max(t_wide - t_square, 0.1 * t_wide) / ((n - d) * d * d),
        lapack_read=t_thin / thin.size,
        cube=t_square / d**3,
        call=1.2e-4,
    )


def _least(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return min(taken)
