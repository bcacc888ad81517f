"""Ratios: the races that were asked for, each one interleaved run, and what came of them.

    python -m benchmarks.ratios                  the races that this commit has not run yet, then ratios.json
    python -m benchmarks.ratios opt-1.3b-bf16    this one anew, then ratios.json
    python -m benchmarks.ratios --beside zen-4   the same on another machine: ratios-zen-4.json, no picture

A race is one file in results/ratios/, so that one that fails costs no other. ratios.json holds what is
there: every row, what was asked of it, where Winnow loses; docs/performance.svg shows the rows of one
shape. This needs the extra `peers`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.recorded import RESULTS, ROOT, THREADS, record, winnow_json

from winnow.base.chart import Words
from winnow.base.files import replacing
from winnow.base.roofline import Measurement, roofline
from winnow.base.timing import commit

LENGTHS = ("--prompt-tokens", "128", "--max-tokens", "48", "--repeats", "3", "--threads", str(THREADS))
DENSE, SPARSE = "winnow-dense", "winnow-sparse"
LAZY = ("--kv", "lazy")  # keys and values as exact as at once, and fewer bytes
ASKED_SHARES = {"bf16": 0.70, "int8": 0.70, "int4": 0.50}  # of the read bandwidth, by Winnow's own engines
DRAWN = "opt-1.3b"
PICTURE = ROOT / "docs/performance.svg"


@dataclass(frozen=True)
class Race:
    """One run of `winnow bench`; `options` are what a later engine of Winnow's own needs beside."""

    shape: str
    dtype: str
    against: str
    density: float = 0.10
    head_density: float = 0.5
    options: tuple[str, ...] = ()

    @property
    def setting(self) -> str:
        """Shares of neurons and heads that the sparse engine computes."""
        return " ".join([f"{self.density:.2f}/{self.head_density:.1f}", *self.options])

    def run(self) -> dict:
        """Return the report; raises CalledProcessError when the run contradicts itself."""
        shares = ("--density", str(self.density), "--head-density", str(self.head_density))
        chosen = ("--shape", self.shape, "--dtype", self.dtype, "--against", self.against)
        return winnow_json("bench", *chosen, *shares, *LENGTHS, *self.options)


@dataclass(frozen=True)
class Asked:
    """By what factor an engine of a race was to be as fast as the best of those in `against`."""

    race: str
    engine: str
    against: tuple[str, ...]
    ratio: float


RACES = {
    "opt-1.3b-bf16": Race("opt-1.3b", "bf16", "hf,llama.cpp,ctranslate2"),
    "opt-1.3b-bf16-lazy": Race("opt-1.3b", "bf16", "hf,llama.cpp,ctranslate2", options=LAZY),
    "opt-1.3b-bf16-lazy-int8-head": Race("opt-1.3b", "bf16", "hf", options=(*LAZY, "--head-dtype", "int8")),
    "opt-1.3b-int8": Race("opt-1.3b", "int8", "llama.cpp,ctranslate2"),
    "opt-1.3b-int8-lazy": Race("opt-1.3b", "int8", "llama.cpp,ctranslate2", options=LAZY),
    "opt-1.3b-int4": Race("opt-1.3b", "int4", "llama.cpp"),
    "opt-1.3b-int4-lazy": Race("opt-1.3b", "int4", "llama.cpp", options=LAZY),
    "llama-1b-bf16": Race("llama-1b", "bf16", "llama.cpp", density=0.25, head_density=1.0),
    "llama-1b-int4": Race("llama-1b", "int4", "llama.cpp", density=0.25, head_density=1.0),
    "opt-6.7b-int8": Race("opt-6.7b", "int8", "llama.cpp:q4_0"),
    "opt-6.7b-int8-lazy": Race("opt-6.7b", "int8", "llama.cpp:q4_0", options=LAZY),
    "opt-6.7b-int4": Race("opt-6.7b", "int4", "llama.cpp"),
    "opt-6.7b-int4-lazy": Race("opt-6.7b", "int4", "llama.cpp", options=LAZY),
}
ASKED = (
    Asked("opt-1.3b-bf16", DENSE, ("llama.cpp",), 1.1),
    Asked("llama-1b-bf16", DENSE, ("llama.cpp",), 1.1),
    Asked("llama-1b-int4", DENSE, ("llama.cpp",), 1.0),
    Asked("opt-1.3b-bf16", SPARSE, ("hf",), 8.5),
    Asked("opt-1.3b-bf16-lazy-int8-head", SPARSE, ("hf",), 11.0),
    Asked("opt-1.3b-bf16", SPARSE, (DENSE,), 2.0),
    Asked("opt-1.3b-int8", SPARSE, (DENSE,), 2.0),
    Asked("opt-1.3b-int4", SPARSE, (DENSE,), 2.0),
    Asked("opt-1.3b-bf16", SPARSE, ("hf", "llama.cpp", "ctranslate2"), 2.5),
    Asked("opt-1.3b-bf16-lazy", SPARSE, ("hf", "llama.cpp", "ctranslate2"), 2.5),
    Asked("opt-1.3b-int8", SPARSE, ("llama.cpp", "ctranslate2"), 4.0),
    Asked("opt-1.3b-int8-lazy", SPARSE, ("llama.cpp", "ctranslate2"), 4.0),
    Asked("opt-1.3b-int4", SPARSE, ("llama.cpp",), 3.0),
    Asked("opt-1.3b-int4-lazy", SPARSE, ("llama.cpp",), 3.0),
    Asked("opt-6.7b-int8", SPARSE, ("llama.cpp",), 2.5),
    Asked("opt-6.7b-int8-lazy", SPARSE, ("llama.cpp",), 2.5),
    Asked("opt-6.7b-int4", SPARSE, ("llama.cpp",), 4.0),
    Asked("opt-6.7b-int4-lazy", SPARSE, ("llama.cpp",), 4.0),
)


def assembled(reports: dict[str, dict]) -> dict:
    """Return ratios.json of the reports of some races, by name."""
    machines = [report["machine"] for report in reports.values()]
    probes = [machine["read_gb_per_s"] for machine in machines]
    commits = list(dict.fromkeys(machine["commit"] for machine in machines))
    machine = {**machines[0], "read_gb_per_s": max(probes), "commit": ", ".join(commits)}
    machine["read_gb_per_s_min"] = min(each["read_gb_per_s_min"] for each in machines)
    rows = [
        {"race": name, **row, "read_gb_per_s": report["machine"]["read_gb_per_s"]}
        for name, report in reports.items()
        for row in report["rows"]
    ]
    return {
        "machine": machine,
        "races": {name: report["machine"] for name, report in reports.items()},
        "rows": rows,
        "required": [_answer(asked, reports[asked.race]) for asked in ASKED if asked.race in reports],
        "bandwidth": [_share(row) for row in rows if row["engine"].startswith("winnow")],
        "losses": [loss for report in reports.values() for loss in _losses(report)],
        "notes": sorted({note for report in reports.values() for note in report["notes"]}),
    }


def _answer(asked: Asked, report: dict) -> dict:
    race = RACES[asked.race]
    rows = {row["engine"]: row for row in report["rows"]}
    rivals = [rows[engine] for engine in asked.against if engine in rows]
    if not rivals:
        raise SystemExit(f"{asked.race} has no row of {' or '.join(asked.against)}; run it with them again")
    best = max(rivals, key=_speed)
    mine = rows[asked.engine]
    ratio, mean_ratio = _speed(mine) / _speed(best), _mean_speed(mine) / max(map(_mean_speed, rivals))
    at_memory_speed = 1e9 * report["machine"]["read_gb_per_s"] / mine["bytes_per_token"]  # tokens per second
    return {
        "shape": race.shape,
        "dtype": race.dtype,
        "setting": _setting(asked.engine, race),
        "against": f"{best['engine']} {best['dtype']}",
        "best_of": len(rivals),
        "measured_ratio": ratio,
        "mean_ratio": mean_ratio,
        "memory_limit_ratio": at_memory_speed / _speed(best),
        "asked_ratio": asked.ratio,
        "is_met": min(ratio, mean_ratio) >= asked.ratio,
    }


def _setting(engine: str, race: Race) -> str:
    return "dense" if engine == DENSE else race.setting


def _share(row: dict) -> dict:
    kept = {key: row[key] for key in ("shape", "dtype", "engine", "bandwidth_share")}
    kept["setting"] = _setting(row["engine"], RACES[row["race"]])
    kept["mean_share"] = row["bandwidth_share"] * _mean_speed(row) / _speed(row)
    asked = ASKED_SHARES[row["dtype"].partition(",")[0]]  # of the layers, whatever the head
    return {**kept, "asked_share": asked, "is_met": row["bandwidth_share"] >= asked}


def _losses(report: dict) -> Iterator[dict]:
    """Yield, for decoding and for the prompt, the best of Winnow's engines where some other is quicker."""
    ours = [row for row in report["rows"] if row["engine"].startswith("winnow")]
    others = [row for row in report["rows"] if row not in ours]
    for what, seconds in (
        ("decoding", lambda row: 1 / _speed(row)),
        ("the prompt", lambda row: row["ttft_s"]),
    ):
        for mine in [min(ours, key=seconds)] if others else []:
            for other in others:
                if seconds(other) < seconds(mine):
                    yield {
                        "shape": mine["shape"],
                        "dtype": mine["dtype"],
                        "what": what,
                        "engine": mine["engine"],
                        "against": f"{other['engine']} {other['dtype']}",
                        "slower_by": seconds(mine) / seconds(other),
                    }


def _speed(row: dict) -> float:
    return row["tokens_per_second"]


def _mean_speed(row: dict) -> float:
    """Return the speed by all steps, pauses included, which is the only one that older races have."""
    return row.get("tokens_per_second_mean", _speed(row))


def picture(result: dict) -> str:
    """Return the roofline of the rows of one shape, in all precisions."""
    machine = result["machine"]
    rows = [row for row in result["rows"] if row["shape"] == DRAWN]
    words = Words(
        title=f"{DRAWN}: bytes and time of a token",
        note=f"{rows[0]['prompt_tokens']} tokens read; {machine['cpu']}, {machine['threads']} threads; "
        "winnow-sparse computes a tenth of the neurons, half of the heads",
        across="bytes read per token",
        upward="time per token",
    )
    points = [
        Measurement(
            row["bytes_per_token"],
            row["ms_per_token"] / 1000,
            f"{row['engine']} {row['dtype']}",
            row["engine"].startswith("winnow"),
        )
        for row in rows
    ]
    return roofline(words, points, 1e9 * machine["read_gb_per_s"])


def _file(series: str, name: str) -> Path:
    return RESULTS / series / f"{name}.json"


def _is_current(file: Path) -> bool:
    return file.exists() and json.loads(file.read_text())["machine"]["commit"] == commit()


def _ran(series: str, name: str) -> bool:
    """Run a race and record it; say why where that fails, and leave its file as it was."""
    print(f"{name}: running")
    try:
        record(f"{series}/{name}", RACES[name].run())
    except subprocess.CalledProcessError as error:
        print(f"{name}: {error.stderr.strip()}", file=sys.stderr)
        return False
    except SystemExit as void:
        print(void, file=sys.stderr)
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run races, then write ratios.json and docs/performance.svg; 1 when a race failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.ratios", description=main.__doc__)
    parser.add_argument("races", nargs="*", choices=[*RACES, []], help=f"some of {', '.join(RACES)}")
    parser.add_argument("--beside", metavar="NAME", help="write ratios-NAME.json and no picture")
    options = parser.parse_args(arguments)
    series = f"ratios-{options.beside}" if options.beside else "ratios"
    names = options.races or [name for name in RACES if not _is_current(_file(series, name))]
    done = [_ran(series, name) for name in names]
    files = {name: _file(series, name) for name in RACES}
    reports = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    if reports:
        result = assembled(reports)
        record(series, result)
        if series == "ratios" and any(row["shape"] == DRAWN for row in result["rows"]):
            with replacing(PICTURE) as draft:
                draft.write_text(picture(result), encoding="utf-8")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
