"""Fidelity: pico with its shipped plan against pico dense, on the whole of a book that neither has seen."""

from benchmarks.recorded import BOOK, machine, record, winnow_json


def main() -> None:
    """Write pico-fidelity.json."""
    inspected = winnow_json("inspect")
    result = {
        "machine": machine(),
        "fidelity": winnow_json("fidelity", "--text", BOOK),
        "perplexity": winnow_json("perplexity", "--text", BOOK),
        "inspect": inspected,
    }
    record("pico-fidelity", result)


if __name__ == "__main__":
    main()
