"""Recorded: one JSON file per benchmark, refused when the machine was not quiet."""

import json
import subprocess
import sys
from pathlib import Path

from winnow.base.files import replacing
from winnow.base.timing import commit, cpu_model
from winnow.kernels import open_cpu, read_bandwidth

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
BOOK = ROOT / "src/winnow/zoo/emerald-city-of-oz.txt"
THREADS = 2
WINNOW = Path(sys.executable).with_name("winnow")


def winnow_json(*arguments: str | Path) -> dict:
    """Return the JSON object that a winnow command prints."""
    command = [str(WINNOW), *map(str, arguments), "--json", "--quiet"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def machine() -> dict:
    """Return what a published figure must carry, its read bandwidth probed now."""
    cpu = open_cpu(THREADS)
    return {
        "cpu": cpu_model(),
        "threads": THREADS,
        "isa": cpu.isa,
        "read_gb_per_s": read_bandwidth(cpu) / 1e9,
        "commit": commit(),
    }


def record(name: str, result: dict) -> None:
    """Write `result` to benchmarks/results; a void one is refused and changes nothing."""
    if result.get("void"):
        raise SystemExit(f"{name}: void ({result.get('failures') or 'the machine was disturbed'}); run again")
    target = RESULTS / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    with replacing(target) as draft:
        draft.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{name}: written")
