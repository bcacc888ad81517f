"""winnow convert: .bin weights become safetensors, without unpickling.   (floor 8 · cli)"""

import argparse
from pathlib import Path

from winnow.base.progress import Progress
from winnow.cli.failures import say
from winnow.cli.show import quantity, show_json, show_pairs
from winnow.engine.checkpoint import WANTED_PICKLED, find_directory
from winnow.engine.convert import convert


def run(arguments: argparse.Namespace) -> int:
    """Write DST from SRC, whole or not at all, and print what was written."""
    source = find_directory(arguments.src, offline=arguments.offline, wanted=WANTED_PICKLED)
    target = Path(arguments.dst)
    bars: list[Progress] = []

    def report(done: int, total: int) -> None:
        megabytes = -(-total // 10**6)
        bars[:] = bars or [Progress("megabytes written", megabytes, quiet=arguments.quiet)]
        bars[0].update(done * megabytes // total)

    done = convert(source, target, dtype=arguments.dtype, report=report)
    if not arguments.quiet:
        for note in done.notes:
            say(note)
    found: dict[str, object] = {
        "directory": str(target),
        "tensors": done.n_tensors,
        "files": done.n_shards,
        "bytes": done.n_bytes,
        "left_out": list(done.left_out),
        "copied": list(done.copied),
    }
    if arguments.json:
        show_json(found)
        return 0
    rows = {**found, "bytes": quantity(done.n_bytes), "copied": ", ".join(done.copied) or "nothing"}
    rows["left_out"] = ", ".join(done.left_out) or "nothing"
    show_pairs(str(target), [(key, str(value)) for key, value in rows.items() if key != "directory"])
    return 0
