"""Roofline: bytes against seconds as a self-contained SVG, the memory limit a line.   (floor 0 · base)

Both scales are logarithmic, so that ``seconds = bytes / bandwidth`` is a straight line and the distance above
it is the factor that a measurement loses against memory alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from winnow.base.chart import (
    BOTTOM,
    FAINT,
    HEIGHT,
    LEFT,
    MARK,
    RIGHT,
    TOP,
    WIDTH,
    Place,
    Words,
    dot,
    line,
    page,
    text,
)
from winnow.base.errors import UsageError
from winnow.base.room import quantity

STEPS = (1, 2, 5)  # of every decade, the numbers that may end a scale and that are written beside it
ROOM = 1.12  # the least factor between a measurement and the end of a scale
LETTER, HIGH = 6.3, 13  # of a label, in pixels: an upper bound of its width per letter, and its height
RINGS = (9, 22, 38, 56, 76)  # distances from a point at which its label is tried
FAR = 22  # from here on a thin line joins label and point
DIRECTIONS = ((1, 0), (-1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1), (0, -1), (0, 1))

Box = tuple[float | int, float | int, float | int, float | int]  # left, top, right, bottom


@dataclass(frozen=True)
class Measurement:
    """What one engine reads and takes per token, the words beside it; marked ones stand out."""

    n_bytes: float | int
    seconds: float
    label: str
    is_marked: bool = False


def roofline(words: Words, points: Sequence[Measurement], bytes_per_s: float) -> str:
    """Return the SVG of `points` over the line ``seconds = bytes / bytes_per_s``.

    Labels avoid each other and the points where there is room within some 80 pixels; otherwise they overlap.
    Raises UsageError without points and for numbers that have no logarithm.
    """
    if not points:
        raise UsageError("A roofline needs at least one measurement; name at least one engine.")
    for value in (bytes_per_s, *(v for point in points for v in (point.n_bytes, point.seconds))):
        if not (value > 0 and math.isfinite(value)):
            raise UsageError(f"A roofline cannot show {value}; expected a positive number.")
    limits = [point.n_bytes / bytes_per_s for point in points]
    across = _Axis([point.n_bytes for point in points], LEFT, WIDTH - RIGHT)
    upward = _Axis([*limits, *(point.seconds for point in points)], HEIGHT - BOTTOM, TOP)
    places = [(across.at(point.n_bytes), upward.at(point.seconds)) for point in points]
    limit = [(x, upward.at(across.value(x) / bytes_per_s)) for x in _inside(across, upward, bytes_per_s)]
    return page(
        words,
        [
            *_grid(across, upward),
            line(limit[0], limit[1], MARK, 2),
            *_labels(points, places, limit, f"memory limit, {bytes_per_s / 1e9:.1f} GB/s"),
            *(dot(place, is_marked=point.is_marked) for point, place in zip(points, places, strict=True)),
        ],
    )


class _Axis:
    """From positive numbers to places on the page, on a scale that ends at 1, 2 or 5 times a power of ten."""

    def __init__(self, values: Sequence[float | int], start: float | int, end: float | int) -> None:
        self.low, self.high = _step(min(values) / ROOM, up=False), _step(max(values) * ROOM, up=True)
        self.start, self.end = start, end

    def at(self, value: float | int) -> float:
        return self.start + math.log(value / self.low) / math.log(self.high / self.low) * (
            self.end - self.start
        )

    def value(self, place: float | int) -> float:
        part = (place - self.start) / (self.end - self.start)
        return self.low * (self.high / self.low) ** part

    def steps(self) -> list[float]:
        return [n for n in _numbers(self.low, self.high) if self.low * 0.99 < n < self.high * 1.01]


def _numbers(low: float, high: float) -> Iterator[float]:
    for decade in range(math.floor(math.log10(low)), math.floor(math.log10(high) + 1e-9) + 1):
        yield from (n * 10.0**decade for n in STEPS)


def _step(value: float, *, up: bool) -> float:
    """Return the nearest step above or below."""
    found = [n for n in _numbers(value / 10, value * 10) if (n >= value if up else n <= value)]
    return found[0] if up else found[-1]


def _inside(across: _Axis, upward: _Axis, bytes_per_s: float) -> tuple[float, float]:
    """Return where the memory limit enters and leaves the plot, to the right."""
    lowest, highest = upward.low * bytes_per_s, upward.high * bytes_per_s
    return across.at(max(across.low, lowest)), across.at(min(across.high, highest))


def _grid(across: _Axis, upward: _Axis) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for n_bytes in across.steps():
        x = across.at(n_bytes)
        parts += [
            line((x, TOP), (x, bottom), "#e6e9ee"),
            text(x, bottom + 19, quantity(n_bytes), "tick", "middle"),
        ]
    for seconds in upward.steps():
        y = upward.at(seconds)
        parts += [
            line((LEFT, y), (right, y), "#e6e9ee"),
            text(LEFT - 10, y + 4, f"{1000 * seconds:g} ms", "tick", "end"),
        ]
    return [*parts, line((LEFT, bottom), (right, bottom), FAINT), line((LEFT, TOP), (LEFT, bottom), FAINT)]


def _labels(
    points: Sequence[Measurement], places: Sequence[Place], limit: Sequence[Place], of_limit: str
) -> list[str]:
    """Write each label at the first place around its point that nothing else takes."""
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    taken += list(_stretches(limit))
    parts = []
    for start, words in (*zip(places, (p.label for p in points), strict=True), (_middle(limit), of_limit)):
        box = _free(start, words, taken)
        taken.append(box)
        (left, top, right, bottom), (x, y) = box, start
        near = (min(max(x, left), right), min(max(y, top), bottom))
        if math.dist(near, start) > FAR:
            parts.append(line(start, near, FAINT))
        parts.append(text(left, bottom - 3, words, "point"))
    return parts


def _free(start: Place, words: str, taken: Sequence[Box]) -> Box:
    boxes = [_box(start, words, ring, towards) for ring in RINGS for towards in DIRECTIONS]
    inside = [box for box in boxes if _is_inside(box)]
    return min(inside or boxes, key=lambda box: sum(_overlap(box, other) for other in taken))


def _box(start: Place, words: str, ring: int, towards: tuple[int, int]) -> Box:
    width = LETTER * len(words)
    x = start[0] + ring * towards[0] - width * (1 - towards[0]) / 2
    y = start[1] + ring * towards[1] - HIGH / 2
    return x, y, x + width, y + HIGH


def _is_inside(box: Box) -> bool:
    left, top, right, bottom = box
    return left >= LEFT + 2 and right <= WIDTH - RIGHT and top >= TOP and bottom <= HEIGHT - BOTTOM - 2


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    upward = min(one[3], other[3]) - max(one[1], other[1])
    return float(max(across, 0) * max(upward, 0))


def _middle(limit: Sequence[Place]) -> Place:
    """Return a place most of the way up the line: measurements stand above it, so its lower side is free."""
    (x1, y1), (x2, y2) = limit
    return x1 + 0.7 * (x2 - x1), y1 + 0.7 * (y2 - y1)


def _stretches(limit: Sequence[Place]) -> Iterator[Box]:
    """Yield small boxes that cover the line."""
    (x1, y1), (x2, y2) = limit
    n = 60
    for i in range(n):
        (a, b), (c, d) = ((x1 + k / n * (x2 - x1), y1 + k / n * (y2 - y1)) for k in (i, i + 1))
        yield min(a, c), min(b, d) - 2, max(a, c), max(b, d) + 2
