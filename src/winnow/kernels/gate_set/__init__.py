"""Gate set: which neurons of a gated MLP matter, by their gates.   (floor 1 · kernels)

    a = act(w_gate @ x + bias)        { f : |a_f| > thresholds_f }

Nothing is guessed and nothing is computed twice: the gates are the first third of the MLP's work,
F * D * itemsize bytes, and `gathered_mlp` takes them from there. What is lost is what the neurons left out
would have added: in the 2-norm at most the sum over them of
thresholds_f * |w_up_f . x + bias_up_f| * norm(w_out_f).

    reference.py   the definition
    cpu.cpp        eight gate rows at once, the eight after them fetched; each block of neurons keeps a list
"""

import numpy as np
import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from winnow.kernels.checks import check_gated, float32_array
from winnow.kernels.cpu import Cpu
from winnow.kernels.gate_set.reference import gate_set_reference
from winnow.kernels.operands import Activation
from winnow.kernels.records import NeuronRecords

__all__ = ["gate_set", "gate_set_reference"]


def gate_set(
    x: Float32[Tensor, " D"],
    records: NeuronRecords,
    thresholds: Float32[Tensor, " F"],
    *,
    activation: Activation,
    cpu: Cpu,
) -> tuple[Int32[Tensor, " A"], Float32[Tensor, " F"]]:
    """Return, ascending, the neurons whose activated gate exceeds its threshold in magnitude, and all gates.

    Exact up to the order of summation: a gate has the bits that the MLP itself computes. A gate or a
    threshold that is not a number selects its neuron; so does a negative threshold. Reads the gate rows and
    the biases only, ``F * D * itemsize`` bytes. Raises UsageError for ungated records and for other shapes.
    """
    check_gated("thresholds", records)
    arrays = float32_array("x", x, records.width), float32_array("thresholds", thresholds, records.n_neurons)
    indices = torch.empty(records.n_neurons, dtype=torch.int32)
    gates = torch.empty(records.n_neurons)
    count = np.zeros(1, np.int64)
    lists = indices[None].numpy(), count, gates[None].numpy()
    cpu.gate_set(arrays[0][None], records, arrays[1], activation, *lists)
    return indices[: count[0]], gates
