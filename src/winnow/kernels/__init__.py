"""Kernels: the arithmetic of a decode step, each kernel beside its definition.   (floor 1 · kernels)

native/             the compiled module, or the knowledge that it is absent
operands.py         weights and caches in the layout the kernels read
checks.py           what the public functions refuse
cpu.py              Cpu: what an implementation offers; the hot calls
linear/             matrix times vector
norm/               layer norm, RMS norm
rotary/             rotary positions
decode_attention/   one query per head against the cache
active_set/         which neurons will fire
gate_set/           which neurons of a gated MLP matter
gathered_mlp/       the MLP over the neurons that fire
portable.py         ReferenceCpu: everything by its definition
compiled.py         NativeCpu: everything compiled
choice.py           open_cpu: which of them this machine gets
"""

from winnow.kernels.active_set import active_set, active_set_reference
from winnow.kernels.choice import isa_levels, open_cpu, read_bandwidth
from winnow.kernels.cpu import Cpu
from winnow.kernels.decode_attention import append_kv, attend, attend_reference
from winnow.kernels.gate_set import gate_set
from winnow.kernels.gathered_mlp import dense_mlp, dense_mlp_reference, gathered_mlp, gathered_mlp_reference
from winnow.kernels.linear import linear, linear_reference
from winnow.kernels.norm import layer_norm, layer_norm_reference, rms_norm, rms_norm_reference
from winnow.kernels.operands import Activation, KvBlock, Matrix, NeuronRecords, QuantisedMatrix, relu, silu
from winnow.kernels.rotary import rotate, rotate_reference

__all__ = [
    "Activation",
    "Cpu",
    "KvBlock",
    "Matrix",
    "NeuronRecords",
    "QuantisedMatrix",
    "active_set",
    "active_set_reference",
    "append_kv",
    "attend",
    "attend_reference",
    "dense_mlp",
    "dense_mlp_reference",
    "gate_set",
    "gathered_mlp",
    "gathered_mlp_reference",
    "isa_levels",
    "layer_norm",
    "layer_norm_reference",
    "linear",
    "linear_reference",
    "open_cpu",
    "read_bandwidth",
    "relu",
    "rms_norm",
    "rms_norm_reference",
    "rotate",
    "rotate_reference",
    "silu",
]
