"""Rotary positions: pairs of a head turned by the angle of their position.   (floor 1 · kernels)

    (a, b) = (x[j], x[j + E/2])   ->   (a cos - b sin, b cos + a sin)

The half-rotation of Hugging Face's Llama, not the interleaved one of the paper; the angles are the caller's.

    reference.py   the definition
    cpu.cpp        in place, one thread
"""

from jaxtyping import Float32
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels.checks import float32_array
from winnow.kernels.cpu import Cpu
from winnow.kernels.rotary.reference import rotate_reference

__all__ = ["rotate", "rotate_reference"]


def rotate(
    x: Float32[Tensor, "H E"], cos: Float32[Tensor, " half"], sin: Float32[Tensor, " half"], *, cpu: Cpu
) -> Float32[Tensor, "H E"]:
    """Return `x` turned by the angles whose cosines and sines are given; E must be even."""
    n_heads, width = x.shape
    if width % 2:
        raise UsageError(f"x has head width {width}, expected an even one.")
    turned = x.clone()
    angles = (float32_array("cos", cos, width // 2), float32_array("sin", sin, width // 2))
    cpu.rotate(float32_array("x", turned, n_heads, width), *angles)
    return turned
