"""Attention: which keys matter, exactly or in constant memory.   (floor 4 · attention)

streaming/   sinks, window, heavy keys and clusters, with a certificate
hf/          attention implementations and a cache for transformers (extra `hf`)
"""

import importlib
from typing import TYPE_CHECKING

from winnow.attention.streaming import Rotation, Streaming, StreamingOptions, StreamingState, streaming

if TYPE_CHECKING:
    from winnow.attention.hf import StreamingCache, register

__all__ = [
    "Rotation",
    "Streaming",
    "StreamingCache",
    "StreamingOptions",
    "StreamingState",
    "register",
    "streaming",
]

_HOMES = {"StreamingCache": "winnow.attention.hf", "register": "winnow.attention.hf"}  # need transformers


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'winnow.attention' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
