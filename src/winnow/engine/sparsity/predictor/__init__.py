"""Predictor: which neurons to compute, from a look at some input.   (floor 5 · engine)

    low-rank    score = up @ (down @ y) + bias,   neuron f is computed when score[f] > 0
    index       score = sizes |p| cos(pi share of differing signs) + bias,   p = projection @ y + offset
    gate        neuron f is computed when |act(w_gate[f] x + b_gate[f])| > threshold[f]

`y` is the MLP's own input x or one that is known earlier (Lookahead). `down` [R, D] and `up` [F, R]
approximate the map from y to the pre-activations, so the score approximates those minus a threshold; an index
does so from signs alone. A gate is not approximated: it is the first half of a gated MLP, and what it leaves
out it leaves out knowingly. A neuron selected in vain costs its bytes and changes nothing, because its
activation is computed exactly; a neuron missed loses its contribution. That is the only error.

    lookahead.py   from which input
    parts.py       matrices and vectors as the named tensors of a file
    low_rank.py    two thin matrices
    index.py       signs of projections
    gate.py        the gates themselves
    kinds.py       what a predictor can be, and how a file names it
    whitened.py    the closed forms, from the moments of what is read
    heads.py       predictors of how much each kv head is about to say
"""

from winnow.engine.sparsity.predictor.gate import GatePredictor
from winnow.engine.sparsity.predictor.heads import HeadFit, fit_heads, head_energies, keeping
from winnow.engine.sparsity.predictor.index import WORD, IndexPredictor
from winnow.engine.sparsity.predictor.kinds import (
    HeadPredictor,
    Predictor,
    ScoredPredictor,
    described,
    predictor_of,
)
from winnow.engine.sparsity.predictor.lookahead import Lookahead
from winnow.engine.sparsity.predictor.low_rank import LowRankPredictor
from winnow.engine.sparsity.predictor.whitened import CrossMoments, Factors, InputMoments, whitened_svd

__all__ = [
    "WORD",
    "CrossMoments",
    "Factors",
    "GatePredictor",
    "HeadFit",
    "HeadPredictor",
    "IndexPredictor",
    "InputMoments",
    "Lookahead",
    "LowRankPredictor",
    "Predictor",
    "ScoredPredictor",
    "described",
    "fit_heads",
    "head_energies",
    "keeping",
    "predictor_of",
    "whitened_svd",
]
