"""Context: what a sequence remembers of its past, exactly or in constant memory.   (floor 5 · engine)

session.py    a conversation's cache, kept from one request to the next
options.py    the budget of a stream, and what it cannot be combined with
past.py       one streaming state per layer, and where a token stands in it
stream.py     prompts and steps whose attention is such a state, their MLPs sparse as ever
"""

from winnow.engine.context.options import CONTEXTS, StreamingContext
from winnow.engine.context.past import Past
from winnow.engine.context.session import Session
from winnow.engine.context.stream import Stream, StreamingDecoding, torch_threads

__all__ = ["CONTEXTS", "Past", "Session", "Stream", "StreamingContext", "StreamingDecoding", "torch_threads"]
