"""Charts: the right places, and nothing in the file that could run or escape."""

from xml.etree import ElementTree

import pytest

from winnow.base.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MARK,
    RIGHT,
    TOP,
    WIDTH,
    Curve,
    Point,
    Words,
    log_chart,
    share_chart,
)
from winnow.base.errors import UsageError

WORDS = Words("A <title> & more", "note", "across", "upward")
POINTS = [Point(0.5, 1e-3, "half"), Point(0.25, 1e-1, "plan", True), Point(1.0, 1e-5, "all")]
SVG = "{http://www.w3.org/2000/svg}"


def drawn(points=POINTS, words=WORDS):
    return ElementTree.fromstring(share_chart(words, points))


def circles(root) -> list[tuple[float, float]]:
    return [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle")]


def test_points_stand_where_their_share_and_decade_say():
    found = circles(drawn())
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    wanted = [
        (LEFT + 0.25 * wide, TOP),  # decades from -5 to -1, in the order of the shares
        (LEFT + 0.5 * wide, TOP + high / 2),
        (LEFT + wide, HEIGHT - BOTTOM),
    ]
    assert found == [pytest.approx(place, abs=0.1) for place in wanted]


def test_the_marked_point_alone_stands_out():
    fills = [c.get("fill") for c in drawn().iter(f"{SVG}circle")]
    assert fills.count(MARK) == 1
    assert fills[0] == MARK


def test_shares_beyond_one_stay_on_the_page():
    assert max(x for x, _ in circles(drawn([*POINTS, Point(1.37, 1e-6, "more")]))) <= WIDTH - RIGHT + 0.1


def test_every_word_is_there_and_none_is_markup():
    texts = ["".join(t.itertext()) for t in drawn().iter(f"{SVG}text")]
    assert all(
        word in texts for word in ("A <title> & more", "note", "across", "upward", "half", "plan", "all")
    )
    assert all(power in texts for power in ("10-5", "10-1", "0 %", "100 %"))
    assert not list(drawn().iter("title"))


def test_nothing_is_fetched_and_nothing_runs():
    text = share_chart(WORDS, POINTS)
    assert text.count("http") == 1  # the name of the format
    assert not any(word in text for word in ("<script", "href", "url(", "@import"))


def test_one_point_is_a_chart():
    assert len(circles(drawn([Point(0.1, 0.02, "one")]))) == 1


@pytest.mark.parametrize("quantity", [0.0, -1.0, float("nan"), float("inf")])
def test_what_has_no_logarithm_is_refused(quantity):
    with pytest.raises(UsageError, match="expected a positive number"):
        share_chart(WORDS, [*POINTS, Point(0.5, quantity, "bad")])


def test_no_points_are_refused():
    with pytest.raises(UsageError, match="at least one point"):
        share_chart(WORDS, [])


def test_a_log_chart_puts_decades_at_equal_steps_and_names_its_curves():
    steps = ((10, 1.0, "1 kB"), (1000, 10.0, "2 kB"), (100_000, 100.0, "3 kB"))
    flat = ((10, 5.0, "9 B"), (100_000, 5.0, "9 B <"))
    drawn = log_chart(WORDS, [Curve("growing", steps), Curve("flat", flat, is_marked=True)])
    places = circles(ElementTree.fromstring(drawn))
    (x0, y0), (x1, y1), (x2, y2) = places[:3]
    assert (x1 - x0, y0 - y1) == (pytest.approx(x2 - x1, abs=0.2), pytest.approx(y1 - y2, abs=0.2))
    assert places[3][1] == places[4][1]
    said = [text.text for text in ElementTree.fromstring(drawn).iter(f"{SVG}text")]
    assert {"growing", "flat", "2 kB", "9 B <"} <= set(said)


@pytest.mark.parametrize("point", [(0, 1.0, ""), (1, -2.0, ""), (1, float("inf"), "")])
def test_a_log_chart_refuses_what_has_no_logarithm_and_nothing(point):
    with pytest.raises(UsageError, match="positive number"):
        log_chart(WORDS, [Curve("one", (point,))])
    with pytest.raises(UsageError, match="at least one point"):
        log_chart(WORDS, [Curve("none", ())])
