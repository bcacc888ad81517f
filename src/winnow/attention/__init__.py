"""Attention: exact, linear, polynomial, sketched; whole sequences and streams alike.   (floor 4 · attention)

    kind = polynomial(degree=4)                 a weight function
    out = kind(q, k, v)                         [B, H, T, E_v], causal, from whole sequences
    state = kind.start(1, n_kv_heads, 64, 64)   or token by token, in memory that does not grow
    state.append(k, v); out = state.read(q)

All kinds keep one contract, and one battery of tests holds them to it.

contract.py      what every kind offers
reference.py     the definition
gate.py          what comes in is checked once
numbers.py       float32 sums, shared heads, signed states
exact.py         softmax
features.py      weights as inner products; elu and angle
series.py        exact features of a polynomial
sketches.py      random features of a power
fixed_state.py   any features as a kind
kinds.py         the makers
module.py        a layer of a network
one_pass/        which positions stand out, in one pass
choosing.py      which degree a context needs
"""

from winnow.attention.choosing import Needle, Separation, finds_needle, min_poly_degree, separation_probe
from winnow.attention.contract import Kind, State
from winnow.attention.exact import softmax
from winnow.attention.kinds import linear, poly_sketch, polynomial, taylor
from winnow.attention.module import Attention, AttentionSizes

__all__ = [
    "Attention",
    "AttentionSizes",
    "Kind",
    "Needle",
    "Separation",
    "State",
    "finds_needle",
    "linear",
    "min_poly_degree",
    "poly_sketch",
    "polynomial",
    "separation_probe",
    "softmax",
    "taylor",
]
