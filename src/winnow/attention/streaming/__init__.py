"""Streaming: a long past in constant memory, with a bound of what that costs.   (floor 4 · attention)

rotation.py      keys that carry their position as an angle, moved as a whole
options.py       the budget
gate.py          what enters is checked once
reference.py     the definition, for a given split of the past
clusters.py      counts, means and covariances of what is no longer held
reservoir.py     a uniform sample of it
held.py          window, sinks, heavy keys
archive.py       the whole stream while it is short
reading.py       one softmax over all of them
certificate.py   how far a read may be from exact attention
state.py         tokens in, outputs out, constant memory
kind.py          the kind and its maker
per_head.py      heads with budgets of their own
calibrate.py     which budget each head needs, by its error on real keys
"""

from winnow.attention.streaming.calibrate import Calibration, calibrate_remainder
from winnow.attention.streaming.certificate import Certificate
from winnow.attention.streaming.kind import Streaming, streaming
from winnow.attention.streaming.options import StreamingOptions
from winnow.attention.streaming.per_head import PerHead, PerHeadState
from winnow.attention.streaming.rotation import Rotation
from winnow.attention.streaming.state import StreamingState

__all__ = [
    "Calibration",
    "Certificate",
    "PerHead",
    "PerHeadState",
    "Rotation",
    "Streaming",
    "StreamingOptions",
    "StreamingState",
    "calibrate_remainder",
    "streaming",
]
