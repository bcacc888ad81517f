"""Hugging Face: streaming attention inside transformers' models.   (floor 4 · attention)

layer.py            a state per layer, as transformers' cache
implementation.py   the attention function and its mask, registered by name
captured.py         what a model attends with on a text, and the budgets that suit it

winnow.attention.register()
model.set_attn_implementation("winnow_streaming")
cache = winnow.attention.StreamingCache(model.config, winnow.attention.streaming(1024))
model.generate(**inputs, past_key_values=cache, prefill_chunk_size=1024)
"""

from winnow.attention.hf.captured import Captured, calibrated, captured
from winnow.attention.hf.implementation import register
from winnow.attention.hf.layer import StreamingCache, StreamingLayer

__all__ = ["Captured", "StreamingCache", "StreamingLayer", "calibrated", "captured", "register"]
