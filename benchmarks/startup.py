"""Startup: seconds from the shell to the help text and to pico's first token, each in a fresh process."""

import subprocess
import time

from benchmarks.recorded import WINNOW, machine, record

from winnow.base.timing import interleaved


def seconds_to_first_token() -> float:
    """Return the time from starting the process to the first byte of text on its standard output."""
    started = time.perf_counter()
    command = [str(WINNOW), "generate", "Once upon a time", "--max-tokens", "2", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        return time.perf_counter() - started


def main() -> None:
    """Write startup.json: medians of seven."""
    firsts: list[float] = []
    cases = {
        "help": lambda: subprocess.run([str(WINNOW), "--help"], check=True, capture_output=True),
        "first": lambda: firsts.append(seconds_to_first_token()),
    }
    timings = interleaved(cases, repeats=7)
    result = {
        "machine": machine(),
        "help_s": timings["help"].median_s,
        "first_token_s": sorted(firsts[1:])[len(firsts[1:]) // 2],
    }
    record("startup", result)


if __name__ == "__main__":
    main()
