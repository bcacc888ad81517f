"""Rooflines: measurements stand over the line at the factor they lose, and labels can be read."""

import math
from itertools import combinations
from xml.etree import ElementTree

import pytest

from winnow.base.chart import BOTTOM, HEIGHT, LEFT, MARK, RIGHT, TOP, WIDTH, Words
from winnow.base.errors import UsageError
from winnow.base.roofline import HIGH, LETTER, Measurement, roofline

WORDS = Words("A <race> & more", "note", "across", "upward")
SVG = "{http://www.w3.org/2000/svg}"
BANDWIDTH = 5e10
CROWDED = [
    Measurement(2.66e9, 0.058, "winnow-dense bf16", True),
    Measurement(1.28e9, 0.028, "winnow-sparse bf16", True),
    Measurement(2.63e9, 0.192, "hf bf16"),
    Measurement(2.64e9, 0.065, "llama.cpp bf16"),
    Measurement(2.62e9, 0.061, "ctranslate2 bf16"),
    Measurement(1.35e9, 0.030, "winnow-dense int8", True),
    Measurement(1.40e9, 0.031, "llama.cpp Q8_0"),
    Measurement(0.65e9, 0.019, "winnow-sparse int8", True),
]


def drawn(points=CROWDED, bandwidth=BANDWIDTH):
    return ElementTree.fromstring(roofline(WORDS, points, bandwidth))


def circles(root) -> list[tuple[float, float]]:
    return [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle")]


def limit(root) -> list[float]:
    (found,) = (each for each in root.iter(f"{SVG}line") if each.get("stroke") == MARK)
    return [float(found.get(key)) for key in ("x1", "y1", "x2", "y2")]


def above_limit(root, place) -> float:
    """Pixels from a place down to the line of the memory limit."""
    x1, y1, x2, y2 = limit(root)
    return y1 + (place[0] - x1) / (x2 - x1) * (y2 - y1) - place[1]


def test_a_measurement_at_the_limit_stands_on_its_line():
    points = [Measurement(n, n / BANDWIDTH, "at") for n in (3e8, 7e8, 2.1e9)]
    root = drawn(points)
    assert [above_limit(root, place) for place in circles(root)] == pytest.approx([0, 0, 0], abs=0.15)


def test_the_distance_to_the_line_is_the_factor_that_is_lost():
    points = [Measurement(3e8, 2 * 3e8 / BANDWIDTH, "a"), Measurement(1.7e9, 4 * 1.7e9 / BANDWIDTH, "b")]
    root = drawn(points)
    once, twice = (above_limit(root, place) for place in circles(root))
    assert once > 10
    assert twice == pytest.approx(2 * once, abs=0.3)


def test_everything_stays_inside_the_margins():
    for points in (CROWDED, CROWDED[:1], [Measurement(1.0, 7e3, "slow"), Measurement(3e12, 1e-9, "absurd")]):
        root = drawn(points)
        x1, y1, x2, y2 = limit(root)
        for x, y in (*circles(root), (x1, y1), (x2, y2)):
            assert LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1
            assert TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1


def test_labels_of_eight_crowded_points_do_not_overlap():
    labels = [t for t in drawn().iter(f"{SVG}text") if t.get("class") == "point"]
    assert len(labels) == len(CROWDED) + 1
    boxes = [(float(t.get("x")), float(t.get("y")), LETTER * len(t.text)) for t in labels]
    for (x, y, width), (other_x, other_y, other_width) in combinations(boxes, 2):
        assert abs(y - other_y) > HIGH - 0.2 or x + width < other_x + 0.2 or other_x + other_width < x + 0.2


def test_every_word_is_there_and_none_is_markup():
    texts = ["".join(t.itertext()) for t in drawn().iter(f"{SVG}text")]
    words = (
        "A <race> & more",
        "note",
        "across",
        "upward",
        "hf bf16",
        "memory limit, 50.0 GB/s",
        "50 ms",
        "1 GB",
    )
    assert [word for word in words if word not in texts] == []


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_what_has_no_logarithm_is_refused(wrong):
    for points, bandwidth in (
        ([Measurement(wrong, 1.0, "a")], BANDWIDTH),
        ([Measurement(1.0, wrong, "a")], BANDWIDTH),
        (CROWDED, wrong),
    ):
        with pytest.raises(UsageError, match="expected a positive number"):
            roofline(WORDS, points, bandwidth)


def test_no_measurements_are_refused():
    with pytest.raises(UsageError, match="at least one"):
        roofline(WORDS, [], BANDWIDTH)
