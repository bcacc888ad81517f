"""Decode: tokens per second of Winnow's engines and of transformers, interleaved in one run."""

from benchmarks.recorded import THREADS, record, winnow_json


def main() -> None:
    """Write opt-1.3b.json, llama-1b.json and pico-speed.json."""
    options = ("--against", "hf", "--dtype", "bf16", "--threads", str(THREADS))
    record("opt-1.3b", winnow_json("bench", "--shape", "opt-1.3b", "--density", "0.1", *options))
    record("llama-1b", winnow_json("bench", "--shape", "llama-1b", "--density", "0.25", *options))
    record("pico-speed", winnow_json("bench", *options, "--max-tokens", "256", "--repeats", "9"))


if __name__ == "__main__":
    main()
