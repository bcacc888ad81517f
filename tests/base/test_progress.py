"""Progress: seldom, truthful, silent when asked."""

import sys

import pytest

from winnow.base import progress
from winnow.base.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until the test moves it: `clock[0] += seconds`."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_thirty_seconds_and_the_last_one(clock, capsys):
    line = Progress("reading", 100)
    for done in range(1, 101):
        line.update(done)
        clock[0] += 1
    shown = [text.split()[1] for text in capsys.readouterr().err.splitlines()]
    assert shown == ["1/100,", "31/100,", "61/100,", "91/100,", "100/100,"]


def test_a_terminal_is_rewritten_in_place_and_ends_with_a_newline(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = Progress("reading", 3)
    for done in (1, 2, 3):
        line.update(done)
        clock[0] += 0.2
    shown = capsys.readouterr().err
    assert shown.count("\r") == 2  # the second came too soon
    assert shown.count("\n") == 1
    assert shown.endswith("\n")


def test_quiet_prints_nothing(capsys):
    Progress("reading", 1, quiet=True).update(1)
    assert capsys.readouterr().err == ""


def test_the_default_stream_is_standard_error(capsys):
    Progress("reading", 1).update(1, "loss 2.5")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "reading: 1/1, 0 s left, loss 2.5\n"


@pytest.mark.parametrize(("resumed", "left"), [(0, "40 s left"), (40, "2.0 min left"), (50, "4.0 min left")])
def test_time_left_counts_only_what_this_run_did(clock, capsys, resumed, left):
    line = Progress("reading", 100)
    line.start_at(resumed)
    clock[0] += 60
    line.update(60)
    assert left in capsys.readouterr().err
