"""Streams: from q, k, v that pass once to a sketch of the outputs.   (floor 4 · attention)

The normaliser of full attention needs all keys, and division is not linear: one pass over interleaved q, k,
v cannot sketch it. So keys and values come first and queries after them, each read once; causal attention
needs the keys so far only and takes them interleaved. The state is a fixed one and the table: nothing grows.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.attention.fixed_state import FeatureAttention, FixedState
from winnow.attention.one_pass.count_sketch import CountSketch, SketchOptions
from winnow.base.errors import UsageError

Queries = Float[Tensor, "T E"]
Keys = Float[Tensor, "T_keys E"]
Values = Float[Tensor, "T_keys E_v"]
Outputs = Float[Tensor, "T E_v"]


def noncausal_two_phase(
    keys_values: Iterable[tuple[Keys, Values]],
    queries: Iterable[Queries],
    kind: FeatureAttention,
    options: SketchOptions,
    *,
    rng: int,
    scale: float | None = None,
) -> CountSketch:
    """Return the sketch of the outputs of every query over all keys; each is read once, keys first.

    Chunks are [T, E], [T, E_v] and [T, E]. Equal to Phi D^-1 U1 U2^T V up to rounding, in ``rows * width *
    E_v`` floats and one fixed state. Raises UsageError when there are no keys or no queries.
    """
    state: FixedState | None = None
    for k, v in keys_values:
        state = state or kind.start(1, 1, k.shape[1], v.shape[1], device=k.device)
        state.append(k[None, None], v[None, None])
    if state is None:
        raise UsageError("keys_values yielded nothing; expected at least one chunk of keys and values.")
    outputs = (state.read(q[None, None], scale)[0, 0] for q in queries)
    return _sketched(outputs, options, rng, "queries")


def causal(
    stream: Iterable[tuple[Queries, Keys, Values]],
    kind: FeatureAttention,
    options: SketchOptions,
    *,
    rng: int,
    scale: float | None = None,
) -> CountSketch:
    """Return the sketch of causal outputs; the stream of chunks (q, k, v) is read once.

    Query t sees the keys of its own position and before. How the stream is cut into chunks matters up to
    rounding only. Raises UsageError when the stream is empty.
    """

    def outputs() -> Iterable[Tensor]:
        state: FixedState | None = None
        for q, k, v in stream:
            state = state or kind.start(1, 1, k.shape[1], v.shape[1], device=k.device)
            yield state.extend(q[None, None], k[None, None], v[None, None], scale=scale)[0, 0]

    return _sketched(outputs(), options, rng, "stream")


def sketch_error(
    pairs: Iterable[tuple[Outputs, Outputs]], options: SketchOptions, *, rng: int
) -> CountSketch:
    """Return the sketch of exact minus approximate outputs, chunk by chunk, each read once.

    `recover` then says at which positions the approximation failed, and the certificate how much error is
    elsewhere. Raises UsageError when nothing comes.
    """
    return _sketched(
        (exact.float() - approximate.float() for exact, approximate in pairs), options, rng, "pairs"
    )


def _sketched(outputs: Iterable[Tensor], options: SketchOptions, rng: int, name: str) -> CountSketch:
    sketch: CountSketch | None = None
    for out in outputs:
        sketch = sketch or CountSketch.empty(options, out.shape[1], seed=rng, device=out.device)
        sketch.add(torch.arange(sketch.end, sketch.end + len(out), device=out.device), out)
    if sketch is None:
        raise UsageError(f"{name} yielded nothing; expected at least one chunk.")
    return sketch
