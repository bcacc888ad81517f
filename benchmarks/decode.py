"""Decode: tokens per second of Winnow's engines and of transformers, interleaved in one run.

`python -m benchmarks.decode [NAME ...]` records the named runs alone.
"""

import sys

from benchmarks.recorded import THREADS, record, winnow_json

RUNS = {
    "opt-1.3b": ("--shape", "opt-1.3b", "--density", "0.1"),
    "llama-1b": ("--shape", "llama-1b", "--density", "0.25"),
    "pico-speed": ("--max-tokens", "256", "--repeats", "9"),
}


def main() -> None:
    """Write opt-1.3b.json, llama-1b.json and pico-speed.json."""
    options = ("--against", "hf", "--dtype", "bf16", "--threads", str(THREADS))
    for name in sys.argv[1:] or RUNS:
        record(name, winnow_json("bench", *RUNS[name], *options))


if __name__ == "__main__":
    main()
