"""Progress: one line on standard error, silent when nobody watches.   (floor 0 · base)"""

import sys
import time


class Progress:
    """A line that is rewritten at most four times a second and once at the end.

    On a terminal the line is rewritten in place; elsewhere one line is printed per `log_every_s`
    seconds, so that a log file stays readable. `quiet` prints nothing at all.
    """

    def __init__(self, label: str, total: int, *, quiet: bool = False) -> None:
        """Start the clock; `total` counts the units that `update` reports."""
        self.label = label
        self.total = total
        self.quiet = quiet
        self.stream = sys.stderr
        self.started_s = time.monotonic()
        self.resumed_at = 0
        self.in_place = self.stream.isatty()
        self.log_every_s = 0.25 if self.in_place else 30.0
        self._next_s = self.started_s

    def start_at(self, done: int) -> None:
        """Say that `done` units were finished by an earlier run, so that time left is estimated right."""
        self.resumed_at = done

    def update(self, done: int, note: str = "") -> None:
        """Show `done` of `total`, with the time left at the pace so far."""
        now = time.monotonic()
        if self.quiet or (now < self._next_s and done < self.total):
            return
        self._next_s = now + self.log_every_s
        fresh = max(done - self.resumed_at, 1)
        left_s = (now - self.started_s) / fresh * (self.total - done)
        line = f"{self.label}: {done}/{self.total}, {_minutes(left_s)} left"
        line = f"{line}, {note}" if note else line
        end = "\n" if done >= self.total else ""
        self.stream.write(f"\r\x1b[2K{line}{end}" if self.in_place else f"{line}\n")
        self.stream.flush()


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
