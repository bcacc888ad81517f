"""Definition of the two-layer loss, for autograd to differentiate.   (floor 2 · linalg)"""

import torch
from jaxtyping import Float
from torch import Tensor


def two_layer_loss_reference(
    x: Float[Tensor, " M"],
    A1: Float[Tensor, "N M"],
    A2: Float[Tensor, "outputs N"],
    b: Float[Tensor, " outputs"],
    w: Float[Tensor, " N"],
) -> Float[Tensor, ""]:
    """Return ``1/2 ||relu(A2 softmax(A1 x)) - b||^2 + 1/2 ||w * (A1 x)||^2``."""
    logits = A1 @ x
    residual = torch.relu(A2 @ torch.softmax(logits, 0)) - b
    return 0.5 * residual.square().sum() + 0.5 * (w * logits).square().sum()
