"""Reports: redacted unless asked, whole in one file, void when a control failed, a gate for CI."""

import json
import re
from dataclasses import replace

import pytest

from winnow.audit.report import (
    Bar,
    Bars,
    Condition,
    Controls,
    Finding,
    Recovered,
    Table,
    as_html,
    as_json,
    exit_code,
)
from winnow.base.errors import UsageError

SECRET = "the <b>vault</b> opens at nine"
FINDING = Finding(
    audit="maps",
    subject="a file & its <name>",
    verdict="equivalent to the text",
    exact_match=1.0,
    token_recall=1.0,
    seconds=2.5,
    controls=Controls(planted_found=True, noise_found=False, notes=("planted: 12 tokens",)),
    certificate={"deviation": 0.5, "rows": 7, "kind": "fp16"},
    does_not_show=("Other channels remain.",),
    recovered=(Recovered("text", 7, SECRET, (464, 22031)),),
    tables=(Table("Shown", ("how", "read"), (("fp16", 1.0), ("averaged", None))),),
    plots=(Bars("Read", "share", (Bar("fp16", 1.0, (0.9, 1.0), "leak"),), mark=0.5),),
)


def test_what_was_found_stays_out_unless_asked_for():
    hidden = as_html(FINDING) + json.dumps(as_json(FINDING))
    assert "vault" not in hidden
    assert "464" not in hidden
    assert "vault" in as_html(FINDING, show_text=True)
    assert as_json(FINDING, show_text=True)["recovered"] == [
        {"name": "text", "n_tokens": 7, "text": SECRET, "token_ids": [464, 22031]}
    ]


def test_the_page_loads_nothing_and_runs_nothing():
    page = as_html(FINDING, show_text=True)
    assert not re.search(r"<script|<img|<link|<iframe|url\(|@import|\bon\w+=|src=", page)
    assert set(re.findall(r'https?://[^"\s<]+', page)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page


def test_every_text_is_escaped():
    page = as_html(FINDING, show_text=True)
    assert "<b>vault" not in page
    assert "the &lt;b&gt;vault" in page
    assert "a file &amp; its &lt;name&gt;" in page


def test_the_object_has_the_keys_that_others_rely_on():
    found = as_json(FINDING)
    keys = {"verdict", "exact_match", "token_recall", "seconds", "controls", "certificate"}
    assert keys <= found.keys()
    assert {"planted_found", "noise_found"} <= dict(found["controls"]).keys()  # type: ignore[call-overload]


@pytest.mark.parametrize(("planted", "noise", "says"), [(False, False, "not found"), (True, True, "noise")])
def test_a_failed_control_voids_the_audit(planted, noise, says):
    void = replace(FINDING, controls=Controls(planted, noise))
    assert void.is_void
    assert as_json(void)["void"] is True
    assert re.match(f"void: .*{says}", void.headline)
    assert 'class="verdict void"' in as_html(void)
    assert exit_code(void, []) == 1  # it passes no gate


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("exact_match>0", True),
        ("exact_match > 1", False),
        ("token_recall>=1", True),
        ("seconds<2.5", False),
        ("deviation==5e-1", True),
        ("rows<=6", False),
    ],
)
def test_conditions_compare_figures(text, holds):
    condition = Condition.read(text)
    assert condition.holds(FINDING) is holds
    assert exit_code(FINDING, [condition]) == int(holds)


@pytest.mark.parametrize(
    "text", ["", "exact_match", "exact_match>", ">0", "a>b", "exact_match>0; rm", "x=>1"]
)
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(UsageError, match="no condition"):
        Condition.read(text)


@pytest.mark.parametrize("name", ["kind", "nothing"])
def test_a_condition_on_no_figure_is_refused(name):
    with pytest.raises(UsageError, match="expected one of exact_match"):
        exit_code(FINDING, [Condition.read(f"{name}>0")])


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_outside_their_range_are_refused(share):
    with pytest.raises(UsageError, match="expected a share"):
        replace(FINDING, token_recall=share)


def test_a_finding_says_what_it_does_not_show():
    with pytest.raises(UsageError, match="does_not_show"):
        replace(FINDING, does_not_show=())


@pytest.mark.parametrize("is_logarithmic", [False, True])
def test_bars_end_within_the_page(is_logarithmic):
    bars = tuple(Bar(f"a{v}", v) for v in (0.0, 0.5, 3.0, 1e9, float("inf")))
    svg = Bars("t", "x", bars, most=1e4, is_logarithmic=is_logarithmic).svg()
    widths = [float(w) for w in re.findall(r'width="([\d.]+)"', svg)]
    assert len(widths) == 5
    assert max(widths) <= 720 - 250 - 70
    assert widths == sorted(widths)
