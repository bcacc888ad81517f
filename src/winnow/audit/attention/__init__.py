"""Attention: from maps and public weights back to tokens.   (floor 5 · audit)

exposure.py      what is shown of maps, and how wrong a number may be
first_layer.py   queries and keys of any token at any position
rows.py          how well a token explains a row
beam.py          readings that live side by side while rows leave a doubt
pair.py          the first two tokens together
causal.py        a causal model's tokens, row after row
encoder.py       an encoder's tokens, each by itself
prefix.py        the tokens behind any layer, by running the model
dump.py          maps as a file holds them, checked
continuous.py    inputs behind maps without a vocabulary
ambiguity.py     how many directions maps leave open
audit.py         maps in, a finding out
"""

from winnow.audit.attention.ambiguity import Ambiguity, ambiguity
from winnow.audit.attention.audit import attention
from winnow.audit.attention.beam import Decoded
from winnow.audit.attention.causal import decode_causal
from winnow.audit.attention.continuous import Heads, Inverted, align, closed_form, invert, spectral_start
from winnow.audit.attention.dump import read_maps
from winnow.audit.attention.encoder import decode_encoder
from winnow.audit.attention.exposure import EXPOSURES, Exposure, Precision, precision
from winnow.audit.attention.first_layer import FirstLayer
from winnow.audit.attention.prefix import decode_prefix
from winnow.audit.attention.rows import Shown

__all__ = [
    "EXPOSURES",
    "Ambiguity",
    "Decoded",
    "Exposure",
    "FirstLayer",
    "Heads",
    "Inverted",
    "Precision",
    "Shown",
    "align",
    "ambiguity",
    "attention",
    "closed_form",
    "decode_causal",
    "decode_encoder",
    "decode_prefix",
    "invert",
    "precision",
    "read_maps",
    "spectral_start",
]
