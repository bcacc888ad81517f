"""Timing: medians of interleaved repeats, and the machine they hold for.   (floor 0 · base)

Contestants take turns inside one run, so that a clock that drifts or a neighbour that wakes up
hurts all of them alike. A figure without its machine and commit is not a figure.
"""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from winnow.base.errors import UsageError


@dataclass(frozen=True)
class Timing:
    """Seconds of every repeat of one case, in the order they were taken."""

    samples_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The middle repeat: half were slower, half were faster."""
        return statistics.median(self.samples_s)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median: above 0.2 the machine was not quiet."""
        return (max(self.samples_s) - min(self.samples_s)) / self.median_s


def interleaved(
    cases: Mapping[str, Callable[[], object]], *, repeats: int = 5, warm_up: int = 1
) -> dict[str, Timing]:
    """Time every case once per round, for `repeats` rounds after `warm_up` rounds that do not count.

    Wall-clock seconds. A case that leaves work running when it returns (a GPU queue) must wait for it.
    """
    if repeats < 1 or warm_up < 0:
        raise UsageError(f"repeats={repeats}, warm_up={warm_up}; expected repeats >= 1 and warm_up >= 0.")
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(warm_up + repeats):
        for name, case in cases.items():
            started = time.perf_counter()
            case()
            if turn >= warm_up:
                samples[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def machine(threads: int) -> dict[str, str | int]:
    """Return what a published figure must carry: processor, cores and threads used, system, commit."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": commit(),
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, with family and model where the kernel prints them; else the architecture.

    Virtual machines name a processor no closer than its maker does: family and model tell its generation.
    """
    if cpuinfo.exists():
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
        lines = (line.partition(":") for line in first.splitlines())
        found = {key.strip(): value.strip() for key, _, value in lines}
        name, family, model = (found.get(key, "") for key in ("model name", "cpu family", "model"))
        if name:
            return f"{name} (family {family}, model {model})" if family and model else name
    return platform.processor() or platform.machine()


def commit(checkout: Path = Path(__file__).parents[3]) -> str:
    """Return the commit of `checkout`, ``-dirty`` where what runs has changes; ``unknown`` outside git.

    Documents and benchmark results do not run: a series of benchmarks names one commit. The default is the
    folder that holds src/ and .git, so an installed wheel answers ``unknown`` and never the commit of a
    repository that it happens to lie in. Asks git: milliseconds.
    """
    if not (checkout / ".git").exists():
        return "unknown"
    running = ("--", ".", ":(exclude)benchmarks/results", ":(exclude)*.md", ":(exclude)docs/*.svg")
    try:
        head = _git(checkout, "rev-parse", "--short=12", "HEAD")
        changes = _git(checkout, "status", "--porcelain", "--untracked-files=no", *running)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}-dirty" if changes else head


def _git(checkout: Path, *words: str) -> str:
    command = ["git", "-C", str(checkout), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
