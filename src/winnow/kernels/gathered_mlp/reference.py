"""Gathered MLP, by its definition.   (floor 1 · kernels)"""

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

from winnow.kernels.operands import Activation
from winnow.kernels.records import NeuronRecords


def gathered_mlp_reference(
    x: Float[Tensor, " D"],
    records: NeuronRecords,
    indices: Int32[Tensor, " A"],
    activation: Activation,
    gates: Float32[Tensor, " F"] | None = None,
) -> Float[Tensor, " D"]:
    """Return the sum over the listed neurons of ``activation(w_in . x + bias) * w_out``, in the dtype of `x`.

    Gated records multiply the activation by ``w_up . x + bias_up``; `gates` are all activations, if known.
    Neither `x` nor the activations are rounded to the dtype of the weights.
    """
    kept = indices.long()
    if gates is None:
        active = activation(records.w_in[kept].to(x.dtype) @ x + records.bias[kept].to(x.dtype))
    else:
        active = gates[kept].to(x.dtype)
    if records.is_gated:
        active = active * (records.w_up[kept].to(x.dtype) @ x + records.bias_up[kept].to(x.dtype))
    return active @ records.w_out[kept].to(x.dtype)


def dense_mlp_reference(
    x: Float[Tensor, " D"], records: NeuronRecords, activation: Activation
) -> Float[Tensor, " D"]:
    """Return the same sum over all neurons."""
    every = torch.arange(records.n_neurons, dtype=torch.int32)
    return gathered_mlp_reference(x, records, every, activation)
