"""Layer: a streaming state in the place of a layer's keys and values.   (floor 4 · attention)

transformers hands a layer's cache the new keys and values and gives what it returns to the attention
function, which never sees the cache. The keys that come back therefore carry a note of their layer.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.configuration_utils import PreTrainedConfig

from winnow.attention.streaming import PerHead, PerHeadState, Streaming, StreamingOptions, StreamingState
from winnow.base.errors import UsageError

NAME = "winnow_streaming"
NOTE = "_winnow_layer"


@final
class StreamingLayer(CacheLayerMixin):
    """The state of one layer; transformers calls its methods."""

    is_sliding = False
    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, kind: Streaming | PerHead, config: PreTrainedConfig) -> None:
        super().__init__()
        self.kind = kind
        self.config = config
        self.state: StreamingState | PerHeadState | None = None
        self.is_waiting = False  # for the attention that belongs to the latest update

    @property
    def batch_size(self) -> int:
        """Rows of the batch, -1 before the first token."""
        return -1 if self.state is None else self.state.sizes[0]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the state for the shapes of the first keys and values."""
        batch, heads, _, width = key_states.shape
        self.state = self.kind.start(batch, heads, width, value_states.shape[-1], device=key_states.device)
        self.is_initialized = True

    def update(  # pyright: ignore[reportIncompatibleMethodOverride] (options of other caches: none here)
        self, key_states: Tensor, value_states: Tensor, *args: object
    ) -> tuple[Tensor, Tensor]:
        """Return the new keys and values alone, noted as this layer's, for the attention to take in."""
        if self.config._attn_implementation != NAME:
            raise UsageError(
                f"A StreamingCache works with attn_implementation {NAME!r}, the model has "
                f"{self.config._attn_implementation!r}; call model.set_attn_implementation({NAME!r})."
            )
        if self.is_waiting:
            raise UsageError(
                "The keys that the cache returned did not reach the attention as they were; this model "
                "changes them in between and cannot stream."
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = key_states.view_as(key_states)  # a tensor of its own to carry the note
        setattr(keys, NOTE, self)
        self.is_waiting = True
        return keys, value_states

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        """Take the noted keys in and return what their queries read."""
        self.is_waiting = False
        assert self.state is not None, "update() makes the state"
        return self.state.step(q, k, v, mask, scale)

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Ask for a mask over all tokens so far: the attention function takes the part of the new ones.

        The first versions of transformers 5 give the new positions, not their number.
        """
        n_new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + n_new, 0

    def get_seq_length(self) -> int:
        """Return the tokens seen so far, masked ones included."""
        return 0 if self.state is None else self.state.seen

    def get_max_length(self) -> int:
        """Return -1: there is no longest stream."""
        return -1

    def get_max_cache_shape(self) -> int:
        """Return -1: what the first versions of transformers 5 ask for in the place of `get_max_length`."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.is_initialized, self.is_waiting = None, False, False

    def offload(self) -> None:
        """Refuse: the state is small and always in use."""
        raise UsageError("A StreamingCache cannot be offloaded; leave it where it is, it does not grow.")

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: what was absorbed cannot be taken out again."""
        if tokens_to_remove:
            raise UsageError(
                f"crop({tokens_to_remove}) on a StreamingCache: absorbed tokens cannot be taken out, so "
                "assisted decoding and rollbacks need another cache. Use DynamicCache there."
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let each beam go on from the one it was chosen from."""
        self._select(beam_idx.long())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        if self.state is not None:
            self._select(torch.arange(self.state.sizes[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch."""
        self._select(indices.long())

    def _select(self, index: Tensor) -> None:
        if self.state is not None:
            self.state.select(index)


@final
class StreamingCache(Cache):
    """A transformers cache of constant size: one streaming state per layer of `config`.

    Takes about `Streaming.start`'s bytes per layer at the first token and never more. Needs
    `register()` and `model.set_attn_implementation("winnow_streaming")`. Works with generate(), chunked
    prefill (`prefill_chunk_size`), left padding and beam search; raises UsageError on crop and for layers
    that have a sliding window or no softmax attention. `kind` is one for all layers, or a list of one per
    layer, such as `calibrated` returns; raises UsageError for another number of them.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        kind: Streaming | StreamingOptions | PerHead | Sequence[Streaming | StreamingOptions | PerHead],
    ) -> None:
        text = config.get_text_config(decoder=True)
        kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
        if getattr(text, "sliding_window", None) is not None and getattr(text, "use_sliding_window", True):
            kinds.add("sliding_attention")
        if kinds != {"full_attention"}:
            raise UsageError(
                f"The model has layers of kinds {', '.join(sorted(kinds))}; a StreamingCache takes the place "
                "of full attention only. Set config.sliding_window=None where the window is not wanted."
            )
        n_layers = text.num_hidden_layers
        each = [kind] * n_layers if isinstance(kind, Streaming | StreamingOptions | PerHead) else list(kind)
        if len(each) != n_layers:
            raise UsageError(
                f"There are {len(each)} kinds, the model has {n_layers} layers; give one, or one each."
            )
        self.kinds = tuple(Streaming(x) if isinstance(x, StreamingOptions) else x for x in each)
        super().__init__(layers=[StreamingLayer(x, text) for x in self.kinds])

    @property
    def batch_size(self) -> int:
        """Rows of the batch, -1 before the first token."""
        return next(layer.batch_size for layer in self.layers if isinstance(layer, StreamingLayer))

    @property
    def n_bytes(self) -> int:
        """Bytes of all layers' states so far."""
        states = (layer.state for layer in self.layers if isinstance(layer, StreamingLayer))
        return sum(state.n_bytes for state in states if state is not None)
