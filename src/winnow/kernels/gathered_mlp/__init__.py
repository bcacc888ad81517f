"""Gathered MLP: the arithmetic of contextual sparsity.   (floor 1 · kernels)

    y = sum over the listed neurons a of  act(w_in_a . x + b_a) [* (w_up_a . x + b_up_a)] * w_out_a

At batch 1 an MLP is bound by the bytes it reads: 2 * A * D * itemsize instead of 2 * F * D * itemsize (3 for
each 2 if gated). A listed neuron whose activation turns out to be 0 costs its in-weights only. Who is summed
with whom depends on a neuron's number alone, so leaving out neurons that do not fire leaves every bit as it
was. Gates that are already known (`gate_set`) are not computed again: A * 2 * D * itemsize bytes.

    reference.py   the definition
    neuron.hpp     where the parts of a record lie; the activation
    teams.hpp      who is summed with whom
    cpu.cpp        eight neurons at once, the out-weights of some fetched while others are multiplied
"""

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from winnow.kernels.checks import float32_array, gate_array, index_array
from winnow.kernels.cpu import Cpu
from winnow.kernels.gathered_mlp.reference import dense_mlp_reference, gathered_mlp_reference
from winnow.kernels.operands import Activation, NeuronRecords

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
    `gate_set`, gate rows are not read; no bit changes. Void for weights that are not finite: those of a
    neuron that does not fire are not read. Raises UsageError for an index outside 0..F-1 and for gates of
    ungated records.
    """
    out = torch.empty(records.width)
    arrays = float32_array("x", x, records.width), index_array(indices, records.n_neurons)
    known = None if gates is None else gate_array(gates, records)
    cpu.gathered_mlp(arrays[0], records, arrays[1], activation, out.numpy(), known)
    return out


def dense_mlp(
    x: Float32[Tensor, " D"], records: NeuronRecords, *, activation: Activation, cpu: Cpu
) -> Float32[Tensor, " D"]:
    """Return the MLP's output over all neurons, reading every byte of `records`.

    The bits are those of `gathered_mlp` over 0..F-1, and over any ascending list of all neurons that fire.
    """
    out = torch.empty(records.width)
    cpu.dense_mlp(float32_array("x", x, records.width), records, activation, out.numpy())
    return out
