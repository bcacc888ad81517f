"""Gate set, by its definition.   (floor 1 · kernels)"""

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from winnow.kernels.operands import Activation
from winnow.kernels.records import NeuronRecords


def gate_set_reference(
    x: Float[Tensor, " D"], records: NeuronRecords, thresholds: Float[Tensor, " F"], activation: Activation
) -> tuple[Int32[Tensor, " A"], Float[Tensor, " F"]]:
    """Return, ascending, the neurons whose ``|activation(w_gate . x + bias)|`` is above their thresholds.

    With them, all those gates, in the dtype of `x`. A gate that is not a number is above every threshold, so
    that a broken input stays visible.
    """
    gates = activation(records.w_in.to(x.dtype) @ x + records.bias.to(x.dtype))
    chosen = torch.nonzero(~(gates.abs() <= thresholds)).squeeze(1)
    return chosen.to(torch.int32), gates
