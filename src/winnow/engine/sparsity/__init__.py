"""Sparsity: predictors, their calibration and what they cost in fidelity.   (floor 5 · engine)

predictor/        which neurons to compute, from a look at an input of the layer or of one before it
sparse_mlp.py     the definition of a winnowed MLP, and the shares of neurons it counts
sparse_heads.py   the definition of attention with some heads, and an ablation of it
plan.py           the predictors of one model, in one file
adapter.py        a transformers model with winnowed MLPs and heads
fidelity.py       sparse against dense, token by token
observe.py        one dense pass: moments and samples of every layer's input
frontier.py       what each setting of each kind would cost and lose, layer by layer
finetune.py       low-rank predictors, fitted from the closed form to the cheapest errors
heldout.py        what a plan loses on windows that were not fitted
search.py         the settings of all layers that read the fewest bytes within a budget, and the fewest heads
resume.py         what an interrupted calibration has finished
sanity.py         what is odd about a text or a layer, in plain words
calibrate.py      the cheapest plan that keeps the fidelity asked for
"""

from winnow.engine.sparsity.adapter import sparsify
from winnow.engine.sparsity.calibrate import CalibrationOptions, calibrate
from winnow.engine.sparsity.fidelity import Fidelity, compare, perplexity, windows
from winnow.engine.sparsity.plan import Plan, find_plan, open_plan, read_plan
from winnow.engine.sparsity.predictor import (
    GatePredictor,
    HeadPredictor,
    IndexPredictor,
    Lookahead,
    LowRankPredictor,
    Predictor,
)
from winnow.engine.sparsity.sparse_heads import SparseHeads
from winnow.engine.sparsity.sparse_mlp import LayerCounts, SparseMlp

__all__ = [
    "CalibrationOptions",
    "Fidelity",
    "GatePredictor",
    "HeadPredictor",
    "IndexPredictor",
    "LayerCounts",
    "Lookahead",
    "LowRankPredictor",
    "Plan",
    "Predictor",
    "SparseHeads",
    "SparseMlp",
    "calibrate",
    "compare",
    "find_plan",
    "open_plan",
    "perplexity",
    "read_plan",
    "sparsify",
    "windows",
]
