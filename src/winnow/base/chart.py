"""Chart: the page of a self-contained SVG, and points joined by a line on it.   (floor 0 · base)

A share chart has a share from 0 % to 100 % to the right, a positive quantity on a logarithmic scale upward; a
log chart has named curves and two logarithmic scales.
No script, no font and no picture from elsewhere; every text is escaped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from winnow.base.errors import UsageError

WIDTH, HEIGHT = 760, 470
LEFT, RIGHT, TOP, BOTTOM = 92, 28, 76, 64  # margins around the plot
INK, FAINT, LINE, MARK = "#22272e", "#667080", "#2a6f97", "#c8553d"
STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:" + INK + "}"
    ".title{font-size:17px;font-weight:600}.note{font-size:12.5px;fill:" + FAINT + "}"
    ".axis{font-size:13px}.tick{font-size:12px;fill:"
    + FAINT
    + "}.point{font-size:11.5px;paint-order:stroke;stroke:#ffffff;stroke-width:3px}"
)

Place = tuple[float | int, float | int]


@dataclass(frozen=True)
class Point:
    """One measurement: a share, a positive quantity, the words beside it; marked ones stand out."""

    share: float | int
    quantity: float | int
    label: str
    is_marked: bool = False


@dataclass(frozen=True)
class Words:
    """What is written around the plot."""

    title: str
    note: str
    across: str
    upward: str


def share_chart(words: Words, points: Sequence[Point]) -> str:
    """Return the SVG of `points`, joined in the order of their shares.

    The upward scale covers whole decades. Raises UsageError without points and for a quantity that has no
    logarithm.
    """
    if not points:
        raise UsageError("A chart needs at least one point.")
    wrong = [point for point in points if not (point.quantity > 0 and math.isfinite(point.quantity))]
    if wrong:
        raise UsageError(f"A chart cannot show {wrong[0].quantity}; expected a positive number.")
    ordered = sorted(points, key=lambda point: point.share)
    scale = _Scale(ordered)
    return page(words, [*_grid(scale), *_curve(ordered, scale), *_labels(ordered, scale)])


@dataclass(frozen=True)
class Curve:
    """A name and its points: positive quantity to the right, positive quantity upward, words beside it."""

    name: str
    points: tuple[tuple[float | int, float | int, str], ...]
    is_marked: bool = False


def log_chart(words: Words, curves: Sequence[Curve]) -> str:
    """Return the SVG of `curves`, each joined in the order given, both scales logarithmic.

    Raises UsageError without points and for quantities that have no logarithm.
    """
    numbers = [point[:2] for curve in curves for point in curve.points]
    if not numbers:
        raise UsageError("A chart needs at least one point.")
    wrong = [x for pair in numbers for x in pair if not (x > 0 and math.isfinite(x))]
    if wrong:
        raise UsageError(f"A chart cannot show {wrong[0]}; expected a positive number.")
    room = 60  # for the curves' names
    across = _LogScale([x for x, _ in numbers], LEFT, WIDTH - RIGHT - room)
    upward = _LogScale([y for _, y in numbers], HEIGHT - BOTTOM, TOP)
    parts = []
    for decade in range(upward.lowest, upward.highest + 1):
        y = upward.at(10.0**decade)
        parts += [line((LEFT, y), (WIDTH - RIGHT, y), "#d5dae1"), _power(LEFT - 10, y + 4, decade)]
    for decade in range(across.lowest, across.highest + 1):
        x = across.at(10.0**decade)
        parts += [
            line((x, TOP), (x, HEIGHT - BOTTOM), "#e6e9ee"),
            _power(x + 8, HEIGHT - BOTTOM + 19, decade),
        ]
    for curve in curves:
        colour = MARK if curve.is_marked else LINE
        places = [(across.at(x), upward.at(y)) for x, y, _ in curve.points]
        parts += [line(a, b, colour, 2) for a, b in pairwise(places)]
        parts += [dot(place, is_marked=curve.is_marked) for place in places]
        labels = [label for _, _, label in curve.points]
        parts += [
            text(x, y - 11, label, "point", "middle") for (x, y), label in zip(places, labels, strict=True)
        ]
        parts += [text(x + 10, y + 4, curve.name, "tick") for x, y in places[-1:]]
    return page(words, parts)


def page(words: Words, parts: Sequence[str]) -> str:
    """Return the SVG that holds `parts` inside the margins and `words` around them."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(words.title)}">'
    )
    return "\n".join([head, f"<style>{STYLE}</style>", *_frame(words), *parts, "</svg>", ""])


def text(x: float | int, y: float | int, words: str, style: str, anchor: str = "start") -> str:
    """Return one line of text in a class of the page's style; `y` is its base line."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'


def line(start: Place, end: Place, colour: str, width: float | int = 1) -> str:
    """Return a straight line."""
    (x1, y1), (x2, y2) = start, end
    drawn = f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"'
    return f"{drawn}/>" if width == 1 else f'{drawn} stroke-width="{width}"/>'


def dot(place: Place, *, is_marked: bool) -> str:
    """Return the mark of a measurement."""
    (x, y), radius, colour = place, 6.5 if is_marked else 4, MARK if is_marked else LINE
    at = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}"'
    return f'<circle {at} fill="{colour}" stroke="#ffffff" stroke-width="1.5"/>'


class _Scale:
    """From shares and quantities to places on the page."""

    def __init__(self, points: Sequence[Point]) -> None:
        logs = [math.log10(point.quantity) for point in points]
        self.lowest = math.floor(min(logs))
        self.highest = max(math.ceil(max(logs)), self.lowest + 1)
        self.widest = max(1.0, *(point.share for point in points))

    def x(self, share: float | int) -> float:
        return LEFT + share / self.widest * (WIDTH - LEFT - RIGHT)

    def y(self, quantity: float | int) -> float:
        part = (math.log10(quantity) - self.lowest) / (self.highest - self.lowest)
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)


class _LogScale:
    """From positive quantities to places between two ends of the page, whole decades wide."""

    def __init__(self, values: Sequence[float | int], start: float | int, end: float | int) -> None:
        logs = [math.log10(value) for value in values]
        self.lowest = math.floor(min(logs))
        self.highest = max(math.ceil(max(logs)), self.lowest + 1)
        self.start, self.end = start, end

    def at(self, value: float | int) -> float:
        part = (math.log10(value) - self.lowest) / (self.highest - self.lowest)
        return self.start + part * (self.end - self.start)


def _frame(words: Words) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(LEFT, 30, words.title, "title"),
        text(LEFT, 52, words.note, "note"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18, words.across, "axis", "middle"),
        f'<g transform="translate(24 {middle:.1f}) rotate(-90)">'
        + text(0, 0, words.upward, "axis", "middle")
        + "</g>",
    ]


def _grid(scale: _Scale) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for decade in range(scale.lowest, scale.highest + 1):
        y = scale.y(10.0**decade)
        parts.append(line((LEFT, y), (right, y), "#d5dae1"))
        parts.append(_power(LEFT - 10, y + 4, decade))
        is_roomy = scale.highest - scale.lowest <= 4
        steps = range(2, 10) if decade < scale.highest and is_roomy else ()
        parts += [
            line((LEFT, at), (right, at), "#f0f2f5") for at in (scale.y(n * 10.0**decade) for n in steps)
        ]
    for tenth in range(0, math.floor(10 * scale.widest + 1e-9) + 1, 2 if scale.widest < 2.5 else 10):
        x = scale.x(tenth / 10)
        parts.append(line((x, TOP), (x, bottom), "#e6e9ee"))
        parts.append(text(x, bottom + 19, f"{10 * tenth} %", "tick", "middle"))
    return [*parts, line((LEFT, bottom), (right, bottom), FAINT), line((LEFT, TOP), (LEFT, bottom), FAINT)]


def _curve(points: Sequence[Point], scale: _Scale) -> list[str]:
    places = [(scale.x(point.share), scale.y(point.quantity)) for point in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [dot(place, is_marked=point.is_marked) for point, place in zip(points, places, strict=True)]
    return [
        f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="2" stroke-linejoin="round"/>',
        *dots,
    ]


def _labels(points: Sequence[Point], scale: _Scale) -> list[str]:
    """Write each label above and right of its point, where a falling curve leaves room; left at the edge."""
    parts = []
    for point in points:
        x, y = scale.x(point.share), scale.y(point.quantity)
        is_late = x + 10 + 6.5 * len(point.label) > WIDTH - RIGHT
        anchor, across, up = ("end", 2, 14) if is_late else ("start", 9, 8)
        parts.append(text(x + across, max(y - up, TOP + 12), point.label, "point", anchor))
    return parts


def _power(x: float | int, y: float | int, decade: int) -> str:
    """Write 10 to the `decade`, the exponent raised."""
    raised = f'<tspan dy="-5" font-size="9.5">{decade}</tspan>'
    return f'<text x="{x:.1f}" y="{y:.1f}" class="tick" text-anchor="end">10{raised}</text>'
