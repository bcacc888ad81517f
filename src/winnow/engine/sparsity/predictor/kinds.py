"""Kinds: what a predictor can be, and how a file names it.   (floor 5 · engine)"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from winnow.engine.config import brief
from winnow.engine.sparsity.predictor.gate import GatePredictor
from winnow.engine.sparsity.predictor.index import IndexPredictor
from winnow.engine.sparsity.predictor.lookahead import Lookahead
from winnow.engine.sparsity.predictor.low_rank import LowRankPredictor

ScoredPredictor = LowRankPredictor | IndexPredictor  # a neuron is computed when its score is above 0
Predictor = ScoredPredictor | GatePredictor
HeadPredictor = LowRankPredictor  # of kv heads in the place of neurons, from the attention's own input


def described(predictor: Predictor | None) -> dict[str, str]:
    """Return what a file says of a predictor beside its tensors; None is a layer that runs dense."""
    if predictor is None:
        return {"kind": "dense"}
    return {"kind": predictor.kind, "lookahead": predictor.lookahead.value}


def predictor_of(row: Mapping[str, Any], found: Mapping[str, Tensor]) -> Predictor | None:
    """Return the predictor that a file says and holds; raises as `parts` does, and ValueError for a kind."""
    match row["kind"]:
        case "dense":
            return None
        case "gate":
            return GatePredictor.of_tensors(found)
        case "index":
            return IndexPredictor.of_tensors(found, Lookahead(row["lookahead"]))
        case "svd" | "low-rank":
            kind = "svd" if row["kind"] == "svd" else "low-rank"
            return LowRankPredictor.of_tensors(found, kind, Lookahead(row["lookahead"]))
        case unknown:
            raise ValueError(f"{brief(unknown)} is no kind of predictor.")
