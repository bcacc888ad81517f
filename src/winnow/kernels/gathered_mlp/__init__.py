"""Gathered MLP: the arithmetic of contextual sparsity.   (floor 1 · kernels)

    y = sum over the listed neurons a of  act(w_in_a . x + b_a) [* (w_up_a . x + b_up_a)] * w_out_a

At batch 1 an MLP is bound by the bytes it reads: 2 * A * D weights instead of 2 * F * D (3 for each 2 if
gated; 2 again if the gates are known). A listed neuron whose activation is 0 costs its in-weights only. Who
is summed with whom is a neuron's number's to say: leaving out what does not fire leaves every bit as it was.

    reference.py           the definition
    neuron.hpp teams.hpp   where the parts of a record lie; who is summed with whom
    cpu.cpp                eight neurons at once, the out-weights of some fetched while others are multiplied
"""

import numpy as np
import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from winnow.kernels.checks import float32_array, gate_array, index_array
from winnow.kernels.cpu import Cpu
from winnow.kernels.gathered_mlp.reference import dense_mlp_reference, gathered_mlp_reference
from winnow.kernels.operands import Activation
from winnow.kernels.records import NeuronRecords

__all__ = ["dense_mlp", "dense_mlp_reference", "gathered_mlp", "gathered_mlp_reference"]


def gathered_mlp(
    x: Float32[Tensor, " D"],
    records: NeuronRecords,
    indices: Int32[Tensor, " A"],
    *,
    activation: Activation,
    cpu: Cpu,
    gates: Float32[Tensor, " F"] | None = None,
) -> Float32[Tensor, " D"]:
    """Return the MLP's output over the neurons of `indices`, without the output bias.

    Exact up to the order of summation; `indices` may repeat and need not be sorted. With `gates`, those of
    `gate_set`, gate rows are not read; no bit changes. Weights of a neuron that does not fire are not read,
    finite or not. Raises UsageError for an index outside 0..F-1 and for gates of ungated records.
    """
    out = torch.empty(records.width)
    row = float32_array("x", x, records.width)[None]
    known = None if gates is None else gate_array(gates, records)[None]
    listed = index_array(indices, records.n_neurons)[None], np.array([len(indices)], np.int64)
    cpu.gathered_mlp(row, records, *listed, activation, out[None].numpy(), known)
    return out


def dense_mlp(
    x: Float32[Tensor, " D"], records: NeuronRecords, *, activation: Activation, cpu: Cpu
) -> Float32[Tensor, " D"]:
    """Return the MLP's output over all neurons, reading every byte of `records`.

    The bits are those of `gathered_mlp` over 0..F-1, and over any ascending list of all neurons that fire.
    """
    out = torch.empty(records.width)
    cpu.dense_mlp(float32_array("x", x, records.width)[None], records, activation, out[None].numpy())
    return out
