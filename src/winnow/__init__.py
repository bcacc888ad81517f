"""Winnow: compute only the inner products that matter.   (floor 8 · cli)

    engine = winnow.load()                       the bundled model; or a checkpoint directory, or a hub id
    done = engine.generate("Once upon a time")   Completion(text, token_ids, finish_reason, stats, ...)
    model = winnow.sparsify(hf_model, plan)      a transformers model with winnowed MLPs and heads
    x, residual, rank, s = winnow.lstsq(A, b)    least squares, to rounding or certified to eps
    pairs = winnow.heavy_pairs(A, B, rho=0.5)    which products are large; Pairs(i, j, product, report)

The names live in the rooms below and are fetched when first used (PEP 562): importing winnow imports
nothing else.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from winnow.engine.generate import Completion, Engine, load
    from winnow.engine.sparsity import calibrate, sparsify
    from winnow.linalg import lstsq
    from winnow.search import heavy_pairs

__all__ = ["Completion", "Engine", "calibrate", "heavy_pairs", "load", "lstsq", "sparsify"]

_HOMES = {
    "Completion": "winnow.engine.generate",
    "Engine": "winnow.engine.generate",
    "calibrate": "winnow.engine.sparsity",
    "heavy_pairs": "winnow.search",
    "load": "winnow.engine.generate",
    "lstsq": "winnow.linalg",
    "sparsify": "winnow.engine.sparsity",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module("winnow.cli.version").version()
    if name == "attention":
        return importlib.import_module("winnow.attention")
    if name not in _HOMES:
        raise AttributeError(f"module 'winnow' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
