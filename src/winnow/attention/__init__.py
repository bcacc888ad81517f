"""Attention: exact or approximate, of whole sequences and of streams.   (floor 4 · attention)

    kind = polynomial(degree=4)                 a weight function
    out = kind(q, k, v)                         [B, H, T, E_v], causal, from whole sequences
    state = kind.start(1, n_kv_heads, 64, 64)   or token by token, in memory that does not grow
    state.append(k, v); out = state.read(q)

contract.py      what every kind offers; one battery of tests holds all to it
reference.py     the definition
gate.py          what comes in, checked once; the type of sums
exact.py         softmax
features.py series.py sketches.py   weights as inner products: elu and angle, powers exact and at random
fixed_state.py   any features as a kind
kinds.py module.py   the makers; a layer of a network
one_pass/        which positions stand out, in one pass
choosing.py      which degree a context needs
streaming/       sinks, window, heavy keys and clusters, with a certificate
hf/              attention implementations and a cache for transformers (extra `hf`)
"""

import importlib
from typing import TYPE_CHECKING

from winnow.attention.choosing import Needle, Separation, finds_needle, min_poly_degree, separation_probe
from winnow.attention.contract import Kind, State
from winnow.attention.exact import softmax
from winnow.attention.kinds import linear, poly_sketch, polynomial, taylor
from winnow.attention.module import Attention, AttentionSizes
from winnow.attention.streaming import streaming

if TYPE_CHECKING:
    from winnow.attention.hf import StreamingCache, register

__all__ = [
    "Attention",
    "AttentionSizes",
    "Kind",
    "Needle",
    "Separation",
    "State",
    "StreamingCache",
    "finds_needle",
    "linear",
    "min_poly_degree",
    "poly_sketch",
    "polynomial",
    "register",
    "separation_probe",
    "softmax",
    "streaming",
    "taylor",
]

_HOMES = {"StreamingCache": "winnow.attention.hf", "register": "winnow.attention.hf"}  # need transformers


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'winnow.attention' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
