"""Kernels: the arithmetic of a decode step, each kernel beside its definition.   (floor 1 · kernels)

native/             the compiled module, or the knowledge that it is absent
operands.py         what operands have in common
pack/               weights into the form in which products read them
matrices.py         weights as floats, bytes, halves of bytes
records.py lazy_kv.py   the weights of an MLP, neuron by neuron; keys and values, and those computed late
checks.py cpu.py    what the public functions refuse; Cpu, Tape: the hot calls
unpack/ bit_products/   back, for products with many vectors; which pairs of +-1 vectors agree
linear/ gathered_linear/   matrix times vector; some heads' blocks of a matrix
add/ norm/ rotary/ decode_attention/   onto the residual stream; norms; positions; heads against the cache
missing_kv/         keys and values of a head, computed when it is needed
active_set/ gate_set/ gathered_mlp/   which neurons fire, which matter; the MLP over them
portable.py compiled.py   everything by its definition; everything compiled
choice.py row_sketch/   open_cpu: which of them this machine gets; passes over rows
"""

from winnow.kernels.active_set import active_set
from winnow.kernels.choice import isa_levels, open_cpu, read_bandwidth
from winnow.kernels.cpu import MOST_BATCH, Calls, Cells, Cpu, Listed, Lists, Tape
from winnow.kernels.decode_attention import attend
from winnow.kernels.gate_set import gate_set
from winnow.kernels.gathered_mlp import dense_mlp, gathered_mlp
from winnow.kernels.lazy_kv import KvBlock, LazyKv
from winnow.kernels.linear import linear
from winnow.kernels.matrices import AnyMatrix, CodedMatrix, Int4Matrix, Matrix, QuantisedMatrix, matrix
from winnow.kernels.operands import Activation, int4, relu, silu
from winnow.kernels.records import NeuronRecords

__all__ = [
    "MOST_BATCH",
    "Activation",
    "AnyMatrix",
    "Calls",
    "Cells",
    "CodedMatrix",
    "Cpu",
    "Int4Matrix",
    "KvBlock",
    "LazyKv",
    "Listed",
    "Lists",
    "Matrix",
    "NeuronRecords",
    "QuantisedMatrix",
    "Tape",
    "active_set",
    "attend",
    "dense_mlp",
    "gate_set",
    "gathered_mlp",
    "int4",
    "isa_levels",
    "linear",
    "matrix",
    "open_cpu",
    "read_bandwidth",
    "relu",
    "silu",
]
