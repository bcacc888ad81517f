"""Timing: turns are taken in rounds, medians are medians, the machine is described without guesses."""

import itertools
import subprocess
from pathlib import Path

import pytest

from winnow.base import timing
from winnow.base.errors import UsageError
from winnow.base.timing import Timing, commit, cpu_model, interleaved, machine


def test_cases_take_turns_and_warm_up_rounds_do_not_count():
    order: list[str] = []
    cases = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    timings = interleaved(cases, repeats=3, warm_up=2)
    assert order == ["a", "b"] * 5
    assert {name: len(t.samples_s) for name, t in timings.items()} == {"a": 3, "b": 3}


def test_a_slow_clock_is_read_around_each_case(monkeypatch):
    ticks = itertools.accumulate([0.0, 1, 0, 10, 0, 3, 0, 10, 0, 2, 0, 10])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    timings = interleaved({"a": list, "b": list}, repeats=3, warm_up=0)
    assert timings["a"].samples_s == (1, 3, 2)
    assert timings["a"].median_s == 2
    assert timings["b"].median_s == 10


def test_spread_compares_the_extremes_with_the_median():
    assert Timing((2.0, 4.0, 5.0)).spread == pytest.approx(0.75)
    assert Timing((3.0,)).spread == 0


@pytest.mark.parametrize(("repeats", "warm_up"), [(0, 1), (-3, 1), (1, -1)])
def test_no_repeats_is_refused(repeats, warm_up):
    with pytest.raises(UsageError, match="expected repeats >= 1 and warm_up >= 0"):
        interleaved({"a": list}, repeats=repeats, warm_up=warm_up)


def test_the_machine_of_a_figure_is_complete():
    found = machine(threads=2)
    assert found["threads"] == 2
    assert found["cores"] >= 1
    assert all(found[key] for key in ("cpu", "system", "python", "commit"))


def test_the_processor_is_read_from_the_kernel(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    one = "processor\t: 0\nmodel name\t: Fast: One @ 3 GHz\n"
    cpuinfo.write_text(f"{one}\nprocessor\t: 1\nmodel name\t: Other\n")
    assert cpu_model(cpuinfo) == "Fast: One @ 3 GHz"
    cpuinfo.write_text(f"{one}cpu family\t: 25\nmodel\t\t: 17\n\n{one}cpu family\t: 26\nmodel\t\t: 2\n")
    assert cpu_model(cpuinfo) == "Fast: One @ 3 GHz (family 25, model 17)"


def test_a_kernel_that_names_no_processor_leaves_the_architecture(tmp_path):
    silent = tmp_path / "cpuinfo"
    silent.write_text("processor\t: 0\nmodel name\t:\n")
    assert cpu_model(silent) == cpu_model(tmp_path / "absent") != ""


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_names_the_checkout_and_says_when_what_runs_has_changes(tmp_path):
    git(tmp_path, "init", "-q")
    results = tmp_path / "benchmarks/results"
    results.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    for file in (tmp_path / "a", tmp_path / "README.md", tmp_path / "docs/p.svg", results / "r.json"):
        file.write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    git(tmp_path, "tag", "v1")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tmp_path) == head[:12]
    (tmp_path / "README.md").write_text("2")
    (tmp_path / "docs/p.svg").write_text("2")
    (results / "r.json").write_text("2")
    assert commit(tmp_path) == head[:12]
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{head[:12]}-dirty"


def test_outside_a_checkout_the_commit_is_unknown(tmp_path):
    assert commit(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")  # a repository around an installed package is not that package's
    package = tmp_path / "site-packages"
    package.mkdir()
    assert commit(package) == "unknown"


def test_a_repository_without_commits_or_a_machine_without_git_is_unknown(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    assert commit(tmp_path) == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) == "unknown"
