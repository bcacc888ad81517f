"""LazyKv: keys and values of one layer that are computed late, and from what.   (floor 1 · kernels)"""

from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float32

from winnow.base.errors import UsageError
from winnow.kernels import native
from winnow.kernels.matrices import AnyMatrix
from winnow.kernels.operands import KvBlock

Vector = Float32[np.ndarray, " _"]
Angles = tuple[Float32[np.ndarray, "window half"], Float32[np.ndarray, "window half"]]


@final
class LazyKv:
    """A layer's cache in which each kv head may lack the keys and values of the last positions.

    `matrix` [2 K E, D] gives the keys of all heads, then the values; `bias` belongs to its rows, `norm` is
    the weight [E] and the eps of an RMS norm of the keys. `inputs` holds the last `window` inputs, that of
    position p in row p % window, and `angles` the cosines and sines of these positions where keys are
    rotated. Of head k the positions 0..filled[k]-1 are whole. Nothing is copied; raises UsageError for other
    shapes.
    """

    __slots__ = ("angles", "bias", "filled", "handle", "inputs", "kv", "matrix", "norm", "window")
    MOST_WINDOW: ClassVar[int] = 64  # positions, kMostWindow of the compiled kernels

    def __init__(
        self,
        kv: KvBlock,
        matrix: AnyMatrix,
        bias: Vector | None,
        norm: tuple[Vector, float] | None,
        angles: Angles | None,
        window: int,
    ) -> None:
        """Hold them, no input yet and no head with a position."""
        if not 1 <= window <= self.MOST_WINDOW:
            raise UsageError(f"window is {window}, expected 1..{self.MOST_WINDOW} positions.")
        n_rows, width = matrix.shape
        _expect("rows of matrix", (n_rows,), (2 * kv.n_kv_heads * kv.head_width,))
        if bias is not None:
            _check("bias", bias, (n_rows,))
        if norm is not None:
            _check("norm", norm[0], (kv.head_width,))
        for name, table in zip(("cos", "sin"), angles or (), strict=False):
            _check(name, table, (window, kv.head_width // 2))
        if angles is not None and kv.head_width % 2:
            raise UsageError(f"the head width is {kv.head_width}, expected an even one to be rotated.")
        self.kv, self.matrix, self.bias, self.norm, self.angles = kv, matrix, bias, norm, angles
        self.window = window
        self.inputs = np.zeros((window, width), np.float32)
        self.filled = np.zeros(kv.n_kv_heads, np.int64)
        self.handle: Any = None
        if native.module is not None:
            weight, eps = norm or (None, 0.0)
            tables = [_address(each) for each in (bias, weight, *(angles or (None, None)), self.inputs)]
            self.handle = native.module.LazyKv(
                kv.handle, matrix.handle, *tables, self.filled.ctypes.data, eps, window
            )

    def missing(self, position: int) -> np.ndarray:
        """Return how many positions each head lacks up to `position`, this one included."""
        return np.maximum(position + 1 - self.filled, 0)


def _address(array: np.ndarray | None) -> int:
    return 0 if array is None else array.ctypes.data


def _check(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        raise UsageError(f"{name} is {array.dtype} or strided, expected float32 in order.")
    _expect(name, array.shape, shape)


def _expect(name: str, received: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if received != expected:
        raise UsageError(f"{name} is {list(received)}, expected {list(expected)}.")
