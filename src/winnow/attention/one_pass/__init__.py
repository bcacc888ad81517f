"""One pass: which positions of a long attention stand out, in constant memory.   (floor 4 · attention)

Three sketches after arXiv:2311.14652 (abstract), construction ours: the mean of keys(k) v^T and its
normaliser, which are kept exactly, and a CountSketch of the outputs o_i = [queries(q_i)^T S] /
[queries(q_i)^T z], from which the largest entries of each column and their positions are recovered.

    sketch = causal(stream, kind, options, rng=0)        each (q, k, v) is read once
    found = recover(sketch, k=20)                        positions, values, certificate and tail ratio

It pays where few positions stand out: then the error is close to that of the best k positions. Attention
outputs themselves seldom are so; `recover` measures that and refuses. The error of an approximation often
is: it sits where attention had to be sharp, and `sketch_error` with `recover` says where.

reference.py     the three sketches, literally
hashing.py       buckets and signs computed from the position, without tables
count_sketch.py  the CountSketch, and one per dyadic level
recovery.py      the largest entries, how far they are from all, and whether that is worth anything
streams.py       from streams of q, k, v to a sketch
"""

from winnow.attention.one_pass.count_sketch import CountSketch, DyadicSketch, SketchOptions
from winnow.attention.one_pass.recovery import Recovered, recover
from winnow.attention.one_pass.streams import causal, noncausal_two_phase, sketch_error

__all__ = [
    "CountSketch",
    "DyadicSketch",
    "Recovered",
    "SketchOptions",
    "causal",
    "noncausal_two_phase",
    "recover",
    "sketch_error",
]
