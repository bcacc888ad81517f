"""Audit: what gradients, updates, attention maps and times give away.   (floor 5 · audit)

    families.py  where a transformers model keeps its embeddings, norms, maps and head
    front.py     the way from token ids to a layer's queries, keys and values, in pieces
    model.py     a model in a directory, opened without running what lies there
    report/      the result of any audit, as HTML, as JSON, as a gate
    leakage/     texts from gradients and updates, and what would prevent it
    encoders/    the same of encoders, whose tokens all see each other
    matching/    inputs fitted to a gradient, where nothing is read
    methods.py   which attack reads which model
    attention/   from attention maps back to tokens
    privacy.py   what noise is worth, to who sees updates and to who sees the model
    timing.py    from how long a model takes to what it was asked

Works on transformers' models (extra `hf`), never on the engine.
"""

from winnow.audit.attention import attention
from winnow.audit.methods import gradients
from winnow.audit.privacy import privacy
from winnow.audit.timing import timing

__all__ = ["attention", "gradients", "privacy", "timing"]
