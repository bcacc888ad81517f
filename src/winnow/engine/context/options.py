"""Options: the budget of a stream, and what it cannot be combined with.   (floor 5 · engine)"""

from dataclasses import dataclass
from typing import final

from winnow.attention.streaming import Rotation, Streaming, StreamingOptions
from winnow.base.errors import UsageError
from winnow.engine.cache import KvPolicy
from winnow.engine.config import ModelConfig
from winnow.engine.families.rope import frequencies
from winnow.engine.sparsity import Plan

BLOCK = 64  # tokens that leave the window together


@final
@dataclass(frozen=True)
class StreamingContext:
    """What each layer keeps of a sequence, in tokens per kv head; see `winnow.attention.streaming`.

    The first `sinks`, the latest `window` and the `heavy` heaviest keys stay exact, the others are
    `clusters`. `remainder` "off" forgets those, "zero" lets them weigh and say nothing. In a rotary model old
    tokens stand no farther than the positions it was trained for (`position` "clamp"), or right behind the
    window ("cache"); in a model with learned positions all tokens beyond its last position stand there.
    """

    window: int = 1024
    heavy: int = 256
    sinks: int = 4
    clusters: int = 64
    remainder: str = "on"
    position: str = "clamp"

    def __post_init__(self) -> None:
        """Refuse budgets that no state can have, whatever the model."""
        if self.position not in (known := ("clamp", "cache")):
            raise UsageError(f"position is {self.position!r}; expected one of {', '.join(known)}.")
        self._options(None, 0)

    def kind(self, config: ModelConfig) -> Streaming:
        """Return the attention of a model's layers.

        Raises UsageError for layers that have a window of their own and for a window that, with the block
        about to leave it, is longer than what the model was trained for.
        """
        windows = {window for window in config.windows if window is not None}
        if windows:
            raise UsageError(
                f"The model has layers that see {min(windows)} tokens by themselves (a sliding window); "
                "--context streaming takes the place of full attention only. Use --context exact."
            )
        if self.window + BLOCK > config.n_positions:
            raise UsageError(
                f"The window is {self.window} tokens and a block of {BLOCK}, the model has "
                f"{config.n_positions} positions; give --window at most {config.n_positions - BLOCK}."
            )
        if config.rope is None and self.position == "cache":
            raise UsageError(
                "The model has learned positions, which lie in its keys and cannot be moved; "
                "--position cache is for rotary models. Use --position clamp."
            )
        if config.rope is None:
            return self.any_length()
        turns = frequencies(config.rope, config.head_width)
        return Streaming(self._options(Rotation(tuple(turns.tolist())), config.n_positions))

    def any_length(self) -> Streaming:
        """Return the attention without a model: keys stay where they are, whatever the length."""
        return Streaming(self._options(None, 0))

    def check_fits(self, plan: Plan | None, kv: KvPolicy, kv_dtype: str | None = None) -> None:
        """Raise UsageError for what cannot stream: keys computed late or held otherwise, heads left out."""
        if kv_dtype is not None:
            raise UsageError(
                f"--kv-dtype {kv_dtype} is of an exact context, and a stream keeps its keys in float32; use "
                "one of --kv-dtype and --context streaming."
            )
        if kv.is_lazy:
            raise UsageError(
                "--kv lazy computes keys long after their token, and a stream has sent them on by then; use "
                "--kv dense with --context streaming."
            )
        if plan is not None and plan.has_heads:
            raise UsageError(
                "The plan leaves heads out, and a stream must see every head's keys; use a plan without "
                "heads, or --dense, with --context streaming."
            )

    def _options(self, rotation: Rotation | None, trained: int) -> StreamingOptions:
        return StreamingOptions(
            window=self.window,
            sinks=self.sinks,
            heavy=self.heavy,
            clusters=self.clusters,
            remainder=self.remainder,
            block=BLOCK,
            reservoir=2,  # the least: nothing is certified here
            position="absolute" if rotation is None else self.position,
            rotation=rotation,
            trained=None if rotation is None else trained,
        )


CONTEXTS: dict[str, StreamingContext | None] = {"exact": None, "streaming": StreamingContext()}
