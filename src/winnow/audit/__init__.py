"""Audit: what gradients, updates and attention maps give away.   (floor 5 · audit)

    families.py  where a transformers model keeps its embeddings, norms, maps and head
    front.py     the way from token ids to a layer's queries, keys and values, in pieces
    leakage/     texts from gradients and updates, and what would prevent it

Works on transformers' models (extra `hf`), never on the engine.
"""

from winnow.audit.leakage import gradients

__all__ = ["gradients"]
