"""winnow convert: .bin weights become safetensors, and safetensors packed weights.   (floor 8 · cli)"""

import argparse
from collections.abc import Callable
from pathlib import Path

from winnow.base.errors import UsageError
from winnow.base.progress import Progress
from winnow.cli.failures import say
from winnow.cli.show import quantity, show_json, show_pairs
from winnow.engine.checkpoint import WANTED_PICKLED, Checkpoint, find_directory
from winnow.engine.convert import Form, convert, pack
from winnow.engine.sparsity import find_plan, read_plan


def run(arguments: argparse.Namespace) -> int:
    """Write DST from SRC, or SRC's weights packed, whole or not at all, and print what was written."""
    if arguments.pack:
        return _pack(arguments)
    if arguments.dst is None:
        raise UsageError("DST is missing, expected SRC DST, or SRC --pack. See winnow convert --help")
    if arguments.head_dtype is not None:
        raise UsageError("--head-dtype is for packed weights; add --pack, or leave it out.")
    source = find_directory(arguments.src, offline=arguments.offline, wanted=WANTED_PICKLED)
    target = Path(arguments.dst)
    done = convert(source, target, dtype=arguments.dtype, report=_bar(arguments))
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


def _pack(arguments: argparse.Namespace) -> int:
    """Write SRC's weights, packed for the plan beside them, beside them or into DST."""
    dtype = arguments.dtype or "bf16"
    if dtype == "fp16":
        raise UsageError("--dtype is fp16; packed weights are fp32, bf16, int8 or int4. Take one of these.")
    checkpoint = Checkpoint.open(arguments.src, offline=arguments.offline)
    plan_path = find_plan(checkpoint.directory)
    plan = plan_path and read_plan(plan_path, checkpoint.config, checkpoint.content_hash())
    form = Form(dtype, arguments.head_dtype or dtype, plan is not None and plan.has_heads)
    target = checkpoint.directory if arguments.dst is None else Path(arguments.dst)
    done = pack(checkpoint, form, target, _bar(arguments))
    found = {
        "file": str(done.path),
        "tensors": done.n_tensors,
        "bytes": done.n_bytes,
        "by_head": form.by_head,
    }
    if arguments.json:
        show_json(found)
        return 0
    rows = {**found, "bytes": quantity(done.n_bytes), "by_head": "yes" if form.by_head else "no"}
    show_pairs(str(done.path), [(key, str(value)) for key, value in rows.items() if key != "file"])
    return 0


def _bar(arguments: argparse.Namespace) -> Callable[[int, int], None]:
    """Return what shows the bytes written on a line of progress."""
    bars: list[Progress] = []

    def report(done: int, total: int) -> None:
        megabytes = -(-total // 10**6)
        bars[:] = bars or [Progress("megabytes written", megabytes, quiet=arguments.quiet)]
        bars[0].update(done * megabytes // total)

    return report
