"""Timing audits: a leak that is there is found, none is found where there is none."""

import numpy as np
import pytest

from winnow.audit.timing import auc, beside, features, fit_logistic, timing
from winnow.base.errors import UsageError
from winnow.base.rng import keyed

PROMPTS = {topic: [f"{topic} {i}" for i in range(33)] for topic in ("law", "sea", "tax")}


def clock(slower: dict[str, float], seed: int = 0):
    """A model whose tokens take 1 +- 0.1, more on some topics; each prompt has its own noise."""

    def measure(prompt: str) -> np.ndarray:
        topic, number = prompt.split()
        place = 100 * sorted(PROMPTS).index(topic) + int(number)
        return 1 + slower.get(topic, 0.0) + 0.1 * keyed(seed, place).standard_normal(24)

    return measure


def test_a_topic_that_is_slower_is_found():
    finding = timing(clock({"sea": 0.1}), PROMPTS)
    assert not finding.is_void
    assert finding.verdict.startswith("the numbers reveal the topic: ")
    assert "sea by AUC" in finding.verdict
    assert finding.certificate["auc_low"] > 0.9


def test_topics_that_take_equally_long_are_not_told_apart():
    found = [timing(clock({}, seed), PROMPTS) for seed in range(3)]
    assert all(not finding.is_void for finding in found)
    lows = [row[3] for finding in found for row in finding.tables[0].rows]
    assert sum(low > 0.5 for low in lows) <= 2  # 9 intervals, each wrong above once in forty


def test_constant_work_reveals_nothing_and_is_not_void():
    finding = timing(lambda prompt: [1.0] * 9, PROMPTS)
    assert not finding.is_void
    assert finding.certificate["auc_low"] <= 0.5 <= finding.certificate["auc_high"]


def test_the_same_seed_gives_the_same_finding():
    one, other = (timing(clock({"tax": 0.03}), PROMPTS, rng=7) for _ in range(2))
    assert one.certificate == other.certificate


def test_auc_is_the_share_of_pairs_in_order():
    rng = keyed(0, 0)
    high, low = rng.integers(0, 6, 17) + 1.0, rng.integers(0, 6, 23) * 1.0
    pairs = np.sign(high[:, None] - low[None, :])
    assert auc(high, low).value == pytest.approx(((pairs + 1) / 2).mean())


def test_the_interval_of_auc_holds_the_true_one_about_as_often_as_it_says():
    inside = 0
    for draw in range(300):
        rng = keyed(1, draw)
        found = auc(rng.standard_normal(40) + 1.0, rng.standard_normal(50))
        inside += found.low <= 0.7602 <= found.high  # Phi(1 / sqrt 2)
    assert 0.91 <= inside / 300 <= 0.99


def test_the_fit_is_where_the_slope_vanishes():
    rng = keyed(2, 0)
    x, labels = rng.standard_normal((31, 5)), rng.integers(0, 2, 31)
    weights = fit_logistic(x, labels, ridge=0.5)
    chance = 1 / (1 + np.exp(-(x @ weights[:-1] + weights[-1])))
    slope = x.T @ (chance - labels) + 0.5 * weights[:-1]
    assert np.abs(np.append(slope, (chance - labels).sum())).max() < 1e-3


@pytest.mark.parametrize(
    "series", [[1.0, 2.0], [1.0, 2.0, np.nan, 4.0], [1.0, np.inf, 2.0, 3.0, 4.0]], ids=str
)
def test_series_that_say_nothing_are_refused(series):
    with pytest.raises(UsageError, match="expected at least 4 finite"):
        features(series)


@pytest.mark.parametrize(
    ("prompts", "says"),
    [({"a": ["x"] * 20}, "2 topics|at least 2"), ({"a": ["x"] * 9, "b": ["y"] * 20}, "9")],
)
def test_too_little_to_compare_is_refused(prompts, says):
    with pytest.raises(UsageError, match=says):
        timing(lambda prompt: [1.0] * 5, prompts)


def test_a_defence_is_shown_beside_what_it_defends_from():
    leaking, constant = timing(clock({"sea": 0.1}), PROMPTS), timing(lambda prompt: [1.0] * 9, PROMPTS)
    both = beside(leaking, constant, "constant work")
    assert both.certificate["auc_low"] > 0.9
    assert both.certificate["constant_work_auc_low"] <= 0.5
    assert "with constant work no topic was told apart" in both.verdict
    assert [table.title for table in both.tables] == ["Topics told apart", "Topics told apart, constant work"]
