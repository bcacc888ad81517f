"""Sparsity: predictors, their calibration and what they cost in fidelity.   (floor 5 · engine)

predictor.py    which neurons will fire, from a low-rank look at the layer's input
plan.py         the predictors of one model, in one file
fidelity.py     sparse against dense, token by token
observe.py      one dense pass: moments and samples of every layer's input
frontier.py     what each rank and threshold would cost and lose, layer by layer
calibrate.py    the cheapest plan that keeps the fidelity asked for
"""

from winnow.engine.sparsity.calibrate import CalibrationOptions, calibrate
from winnow.engine.sparsity.fidelity import Fidelity, compare, perplexity, windows
from winnow.engine.sparsity.plan import Plan, find_plan, open_plan
from winnow.engine.sparsity.predictor import LowRankPredictor

__all__ = [
    "CalibrationOptions",
    "Fidelity",
    "LowRankPredictor",
    "Plan",
    "calibrate",
    "compare",
    "find_plan",
    "open_plan",
    "perplexity",
    "windows",
]
