"""Options: the budget of a streaming state and what it does with the rest.   (floor 4 · attention)"""

from dataclasses import dataclass
from typing import final

from winnow.attention.streaming.rotation import Rotation
from winnow.base.errors import UsageError

REMAINDERS = ("on", "off", "zero")
POSITIONS = ("absolute", "cache", "clamp")


@final
@dataclass(frozen=True)
class StreamingOptions:
    """What a state holds per key-value head, in tokens unless said otherwise; see `streaming`."""

    window: int
    sinks: int = 4
    heavy: int = 256
    clusters: int = 64
    remainder: str = "on"
    block: int = 64
    reservoir: int = 768
    position: str = "absolute"
    rotation: Rotation | None = None
    trained: int | None = None
    strict: bool = False
    tolerance: float = 0.1
    exact_tokens: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no state can be made of."""
        least = {"window": 1, "sinks": 0, "heavy": 0, "clusters": 1, "block": 1, "reservoir": 2}
        least |= {"exact_tokens": 0, "seed": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value < bound:
                raise UsageError(f"{name} is {value}; expected at least {bound}. Give a larger {name}.")
        if self.remainder not in REMAINDERS:
            raise UsageError(f"remainder is {self.remainder!r}; expected one of {', '.join(REMAINDERS)}.")
        if self.position not in POSITIONS:
            raise UsageError(f"position is {self.position!r}; expected one of {', '.join(POSITIONS)}.")
        if not self.tolerance > 0:
            raise UsageError(f"tolerance is {self.tolerance}; expected a positive error of the output.")
        if self.position != "absolute" and self.rotation is None:
            raise UsageError(
                f"position={self.position!r} moves keys and needs their rotary angles; give "
                "rotation=Rotation.of(theta, width), or position='absolute'."
            )
        if self.position == "clamp" and (self.trained is None or self.trained < self.held):
            raise UsageError(
                f"position='clamp' got trained={self.trained}; expected the trained length in tokens, at "
                f"least window + block = {self.held}."
            )

    @property
    def held(self) -> int:
        """Tokens that the window's buffer holds at most: the last `window` of them are always exact."""
        return self.window + self.block

    @property
    def reach(self) -> int | None:
        """The distance in tokens, plus one, at which an old token stops moving away; None: it never does."""
        return {"absolute": None, "cache": self.held, "clamp": self.trained}[self.position]

    def shift(self, position: int) -> int:
        """Return by how many positions the old tokens have moved along with a query at `position`."""
        return 0 if self.reach is None else max(0, position + 1 - self.reach)
