"""Add: what a sublayer returns, onto the residual stream.   (floor 1 · kernels)

y <- y + x

reference.py   the definition
cpu.cpp        one thread
"""

from jaxtyping import Float32
from torch import Tensor

from winnow.kernels.add.reference import add_reference
from winnow.kernels.checks import float32_array
from winnow.kernels.cpu import Cpu

__all__ = ["add", "add_reference"]


def add(x: Float32[Tensor, " D"], y: Float32[Tensor, " D"], *, cpu: Cpu) -> Float32[Tensor, " D"]:
    """Return ``x + y``, each element rounded once."""
    total = y.clone()
    cpu.add(float32_array("x", x, *y.shape), float32_array("y", total, *y.shape))
    return total
