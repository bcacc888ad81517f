"""Parts: a predictor's matrices and vectors as the named tensors of a file.   (floor 5 · engine)

Reading back raises KeyError for a part that is missing, ValueError or UsageError for one that cannot be.
"""

from collections.abc import Mapping

from jaxtyping import Float, Float32
from torch import Tensor

from winnow.kernels import Matrix, QuantisedMatrix


def stored(name: str, matrix: Matrix | QuantisedMatrix) -> dict[str, Tensor]:
    """Return a matrix as the tensor `name`, the scales of int8 beside it."""
    if isinstance(matrix, QuantisedMatrix):
        return {name: matrix.values, f"{name}_scales": matrix.scales}
    return {name: matrix.weight.contiguous()}


def matrix(found: Mapping[str, Tensor], name: str) -> Matrix | QuantisedMatrix:
    """Return the matrix that `stored` gave as `name`."""
    values, scales = found[name], found.get(f"{name}_scales")
    if values.ndim != 2 or values.is_floating_point() != (scales is None):
        raise ValueError(f"{name} is {values.dtype} of shape {tuple(values.shape)}, scales or not.")
    return Matrix(values) if scales is None else QuantisedMatrix(values, scales)


def vector(values: Float[Tensor, " _"]) -> Float32[Tensor, " _"]:
    """Return a vector in float32."""
    if values.ndim != 1 or not values.is_floating_point():
        raise ValueError(f"{values.dtype} of shape {tuple(values.shape)} stands where floats [F] belong.")
    return values.float().contiguous()
