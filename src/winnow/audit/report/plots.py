"""Plots: small drawings that lie inside the page: bars beside their names.   (floor 5 · audit)"""

import math
from dataclasses import dataclass
from html import escape
from typing import final

from winnow.base.errors import UsageError

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 720, 26, 250, 70, 14, 46
INK, FAINT, GRID = "#22272e", "#667080", "#e6e9ee"
COLOURS = {"leak": "#c8553d", "safe": "#2a6f97", "plain": "#8a97a8"}
SEGMENTS = 4


@final
@dataclass(frozen=True)
class Bar:
    """A named quantity; `interval` is drawn as a line across its end; `kind` is leak, safe or plain."""

    name: str
    value: float | int
    interval: tuple[float | int, float | int] | None = None
    kind: str = "plain"


@final
@dataclass(frozen=True)
class Bars:
    """Bars from 0 to `most`, with a line at `mark` where one is given; logarithmic from 1 if asked.

    Values below the scale end at its beginning, those above at its end.
    """

    title: str
    across: str
    bars: tuple[Bar, ...]
    most: float | int = 1.0
    mark: float | None = None
    is_logarithmic: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not self.bars or not self.most > 0 or (self.is_logarithmic and not self.most > 1):
            raise UsageError(f"{self.title!r} has no bars or no scale; expected bars and most above 0, or 1.")

    def svg(self) -> str:
        """Return the drawing: no script, no font and no picture from elsewhere, every text escaped."""
        height = TOP + ROW * len(self.bars) + BOTTOM
        bottom = height - BOTTOM
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'aria-label="{escape(self.title)}">'
        ]
        for tick, words in self._ticks():
            x = self._x(tick)
            parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>')
            parts.append(_text(x, bottom + 17, words, FAINT, 12, "middle"))
        for row, bar in enumerate(self.bars):
            parts += self._bar(TOP + row * ROW, bar)
        if self.mark is not None:
            x = self._x(self.mark)
            parts.append(
                f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{INK}" '
                'stroke-dasharray="4 3"/>'
            )
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, self.across, INK, 13, "middle"))
        return "".join([*parts, "</svg>"])

    def _bar(self, y: float | int, bar: Bar) -> list[str]:
        end, middle = self._x(bar.value), y + ROW / 2
        colour = COLOURS[bar.kind]
        parts = [
            _text(LEFT - 10, middle + 4, bar.name, INK, 13, "end"),
            f'<rect x="{LEFT}" y="{y + 5}" width="{max(end - LEFT, 1.5):.1f}" height="{ROW - 10}" '
            f'fill="{colour}"/>',
        ]
        if bar.interval is not None:
            low, high = (self._x(each) for each in bar.interval)
            parts.append(
                f'<line x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}" stroke="{INK}" '
                'stroke-width="2"/>'
            )
            end = max(end, high)
        return [*parts, _text(end + 6, middle + 4, _number(bar.value), FAINT, 12, "start")]

    def _x(self, value: float | int) -> float:
        if self.is_logarithmic:
            part = math.log10(max(value, 1.0)) / math.log10(self.most)
        else:
            part = value / self.most
        return LEFT + min(max(part, 0.0), 1.0) * (WIDTH - LEFT - RIGHT)

    def _ticks(self) -> list[tuple[float, str]]:
        if self.is_logarithmic:
            decades = math.floor(math.log10(self.most) + 1e-9)
            step = max(1, math.ceil(decades / 6))
            return [(10.0**n, f"1e{n}" if n > 3 else f"{10**n}") for n in range(0, decades + 1, step)]
        return [(self.most * n / SEGMENTS, f"{self.most * n / SEGMENTS:g}") for n in range(SEGMENTS + 1)]


def _number(value: float | int) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "no second"


def _text(x: float | int, y: float | int, words: str, colour: str, size: int, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )
