"""Linear, by its definition.   (floor 1 · kernels)"""

from jaxtyping import Float
from torch import Tensor


def linear_reference(
    x: Float[Tensor, " D"], weight: Float[Tensor, "M D"], bias: Float[Tensor, " M"] | None
) -> Float[Tensor, " M"]:
    """Return ``weight @ x + bias`` in the dtype of `x`, which is not rounded to the dtype of `weight`."""
    y = weight.to(x.dtype) @ x
    return y if bias is None else y + bias.to(x.dtype)
