"""Keys and values of one layer; and those that are computed late, and from what.   (floor 1 · kernels)"""

import math
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels import native
from winnow.kernels.matrices import AnyMatrix
from winnow.kernels.operands import DTYPE_CODES, FLOATS, aligned_bytes
from winnow.kernels.pack import to_int8

Vector = Float32[np.ndarray, " _"]
Angles = tuple[Float32[np.ndarray, "window half"], Float32[np.ndarray, "window half"]]


@final
class KvBlock:
    """Keys and values of one layer, [K, capacity, E] each, zero at first; a head's keys are one stream.

    Of int8 each row, the key or the value of one head at one position, is held as whole steps of its scale,
    ``scales`` being those of the keys and of the values, [K, capacity]: what is read back is within half a
    step, 1/254 of the row's largest magnitude.
    """

    __slots__ = ("capacity", "dtype", "handle", "head_width", "keys", "n_kv_heads", "scales", "values")

    def __init__(self, n_kv_heads: int, capacity: int, head_width: int, dtype: torch.dtype) -> None:
        """Allocate room for `capacity` positions; raises UsageError for a type that no cache has."""
        if dtype not in (*FLOATS, torch.int8):
            raise UsageError(f"dtype is {dtype}, expected torch.float32, torch.bfloat16 or torch.int8.")
        shape = (n_kv_heads, capacity, head_width)
        if min(shape) < 1:
            raise UsageError(
                f"KvBlock received kv heads, capacity, head width = {shape}, expected at least 1 each."
            )
        self.n_kv_heads, self.capacity, self.head_width = shape
        self.dtype = dtype
        self.keys, self.values = _zeros(shape, dtype), _zeros(shape, dtype)
        self.scales: tuple[Tensor, Tensor] | None = None
        if dtype == torch.int8:
            self.scales = _zeros(shape[:2], torch.float32), _zeros(shape[:2], torch.float32)
        self.handle = None
        if native.module is not None:
            scales = (0, 0) if self.scales is None else [each.data_ptr() for each in self.scales]
            self.handle = native.module.KvBlock(
                self.keys.data_ptr(), self.values.data_ptr(), *shape, DTYPE_CODES[dtype], *scales
            )

    @property
    def position_bytes(self) -> int:
        """What a head's key and value of one position take."""
        return 2 * (self.head_width * self.dtype.itemsize + (4 if self.scales else 0))

    @property
    def n_bytes(self) -> int:
        """Memory held."""
        return self.n_kv_heads * self.capacity * self.position_bytes

    def put(
        self, start: int, k: Float[Tensor, "n T E"], v: Float[Tensor, "n T E"], head: int | None = None
    ) -> None:
        """Store keys and values of the positions from `start` on, of all heads or of one, rounded."""
        heads = slice(None) if head is None else slice(head, head + 1)
        at = heads, slice(start, start + k.shape[1])
        for index, (held, x) in enumerate(((self.keys, k), (self.values, v))):
            if self.scales is None:
                held[at] = x
            else:
                steps, scales = to_int8(x.flatten(0, 1))
                held[at], self.scales[index][at] = steps.view(x.shape), scales.view(x.shape[:2])

    def floats(self, start: int, end: int) -> tuple[Float[Tensor, "K T E"], Float[Tensor, "K T E"]]:
        """Return keys and values of the positions start..end-1: views, or of int8 float32 copies."""
        keys, values = self.keys[:, start:end], self.values[:, start:end]
        if self.scales is None:
            return keys, values
        by_key, by_value = (scales[:, start:end, None] for scales in self.scales)
        return keys * by_key, values * by_value

    def take(self, other: "KvBlock", length: int) -> None:
        """Copy the first `length` positions of a block of the same kind."""
        pairs = [(self.keys, other.keys), (self.values, other.values)]
        if self.scales is not None and other.scales is not None:
            pairs += zip(self.scales, other.scales, strict=True)
        for mine, theirs in pairs:
            mine[:, :length] = theirs[:, :length]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return aligned_bytes(math.prod(shape) * dtype.itemsize).view(dtype).view(shape).zero_()


@final
class LazyKv:
    """A layer's cache in which each kv head may lack the keys and values of the last positions.

    `matrix` [2 K E, D] gives the keys of all heads, then the values; `bias` belongs to its rows, `norm` is
    the weight [E] and the eps of an RMS norm of the keys. `inputs` holds the last `window` inputs, that of
    position p in row p % window, and `angles` the cosines and sines of these positions where keys are
    rotated. Of head k the positions 0..filled[k]-1 are whole. No weight is copied; the compiled kernels keep
    each input a second time, as they multiply with it. Raises UsageError for other shapes.
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
