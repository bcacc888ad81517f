"""Streaming text: perplexity of the bundled models on held-out books, by what a layer may hold.

    python -m benchmarks.streaming_text /path/to/heldout

Books are read one after the other, at contexts of 2k to 64k tokens; counted are the last 1024 of each. Full
attention is the measure: where learned positions end the last one is used, rotary positions go on. At equal
bytes per layer, in three budgets: sinks and a window alone; the hybrid of window, heavy keys and clusters; the
hybrid with its remainder left off. Beyond the trained length the old tokens of the rotary model are clamped to
it ("clamp") or stay where they were when they left the window ("cache"). `best` says which is best at equal
bytes, `is_streaming_best` whether the hybrid is.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.recorded import machine, record
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from winnow.attention.streaming import Streaming, StreamingOptions, StreamingState
from winnow.attention.streaming.rotation import Rotation
from winnow.engine import Checkpoint, Tokenizer, Weights, load_weights
from winnow.engine.context.past import angles_of, learned_position
from winnow.engine.families.rope import frequencies, rotate
from winnow.engine.model import dense_mlp, embed, logits  # noqa: F401
