"""Figures in prose: rendered from benchmarks/results/*.json into the markers of the documents.

    <!-- from benchmarks/results/x.json: fidelity.kld_mean as .1e -->...
    <!-- from benchmarks/results/x.json: rows[engine=hf].ms_per_token / rows[0].ms_per_token as .1f -->...
    <!-- from benchmarks/results/x.json: rows as table engine, dtype, tokens_per_second -->...

Every marker ends with ``<!-- end -->``. A key is a path of names, `[index]`
and `[field=value]`; two keys with a slash between them are a ratio.
`scripts/tables` rewrites the documents, `scripts/tables --check` only says whether they are current.
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARKER = re.compile(r"<!-- from (\S+): (.+?)(?: as (.+?))? -->(.*?)<!-- end -->", re.DOTALL)
STEP = re.compile(r"\.?([\w-]+)|\[(\d+)\]|\[([\w-]+)=([^\]]+)\]")


class TableError(ValueError):
    """A marker asks for something that its result file does not hold."""


@dataclass(frozen=True)
class Column:
    """How one field of a result row is shown: its heading, its format, and the unit it is divided by."""

    heading: str
    form: str = ""
    unit: float = 1


COLUMNS = {
    "n": Column("n", "d"),
    "rho": Column("rho", "g"),
    "method": Column("method"),
    "milliseconds": Column("ms", ".1f"),
    "recall": Column("recall", ".3f"),
    "group": Column("group", "d"),
    "times_float32": Column("float32 takes, times", ".0f"),
    "times_faiss": Column("faiss takes, times", ".0f"),
    "engine": Column("engine"),
    "shape": Column("shape"),
    "dtype": Column("weights"),
    "mlp_density": Column("MLP density", ".2f"),
    "head_density": Column("head density", ".2f"),
    "head_dtype": Column("head"),
    "kv_dtype": Column("keys, values"),
    "kld_quantised": Column("KLD of the rounding, nats", ".1e"),
    "prompt_tokens": Column("prompt", "d"),
    "tokens_per_second": Column("tokens/s", ".1f"),
    "tokens_per_second_min": Column("slowest", ".1f"),
    "tokens_per_second_max": Column("fastest", ".1f"),
    "ms_per_token": Column("ms/token", ".1f"),
    "of_torch": Column("of torch", ".2f"),
    "seconds": Column("seconds", ".1f"),
    "model": Column("model"),
    "rounding": Column("maps"),
    "tokens": Column("tokens", "d"),
    "token_recall": Column("tokens read back", ".1%"),
    "exact_match": Column("texts read back", ".1%"),
    "least_margin": Column("least margin", ".3g"),
    "texts": Column("texts", "d"),
    "configured": Column("configured", "g"),
    "measured": Column("measured", ".4g"),
    "auc": Column("AUC", ".2f"),
    "auc_low": Column("from", ".2f"),
    "auc_high": Column("to", ".2f"),
    "batches": Column("batches", "d"),
    "last_token": Column("last tokens", ".1%"),
    "worst_certificate": Column("largest certificate", ".1e"),
    "token_set": Column("token sets found", ".1%"),
    "load_s": Column("seconds", ".2f"),
    "load_least_s": Column("least", ".2f"),
    "resident_of_packed": Column("resident", ".2f"),
    "peak_of_packed": Column("peak", ".2f"),
    "ttft_s": Column("first token, s", ".2f"),
    "bytes_per_token": Column("MB/token", ".1f", 1e6),
    "gb_per_s": Column("GB/s", ".1f"),
    "bandwidth_share": Column("share of read bandwidth", ".0%"),
    "rss_bytes": Column("memory, MB", ".0f", 1e6),
    "density": Column("density", ".2f"),
    "target_kld": Column("target, nats", "g"),
    "kld": Column("KLD, nats", ".1e"),
    "bytes_share": Column("bytes of the dense MLP's", ".2f"),
    "predictor_share": Column("of which predictor", ".3f"),
    "weighted_recall": Column("weighted recall", ".3f"),
    "kld_mean": Column("mean KLD, nats", ".1e"),
    "kld_p999": Column("KLD 99.9 %, nats", ".1e"),
    "kld_known": Column("known, nats", ".1e"),
    "kld_equal": Column("every layer alike, nats", ".1e"),
    "kld_spread": Column("as a plan, nats", ".1e"),
    "kld_drop": Column("keys and values dropped, nats", ".1e"),
    "same_top": Column("same top token", ".2%"),
    "against": Column("against"),
    "mean_ratio": Column("pauses included", ".2f"),
    "mean_share": Column("pauses included", ".0%"),
    "measured_ratio": Column("times as fast", ".2f"),
    "memory_limit_ratio": Column("at memory speed", ".1f"),
    "asked_ratio": Column("asked", ".1f"),
    "asked_share": Column("asked", ".0%"),
    "is_met": Column("met"),
    "slower_by": Column("times as slow", ".2f"),
    "kv_growth_bytes": Column("more MB", ".1f", 1e6),
    "growth_ms": Column("more ms", ".2f"),
    "kv_growth_limit_ms": Column("more ms at the memory limit", ".2f"),
    "bytes_growth_ratio": Column("growth of bytes, sparse / dense", ".2f"),
    "time_growth_ratio": Column("growth of time, sparse / dense", ".2f"),
    "rows": Column("rows", "d"),
    "columns": Column("columns", "d"),
    "eps": Column("eps", "g"),
    "auto": Column("auto takes"),
    "numpy_ms": Column("numpy, ms", ".1f"),
    "gram_ms": Column("gram, ms", ".1f"),
    "sketch_ms": Column("sketch, ms", ".1f"),
    "matrix": Column("matrix"),
    "height_of_columns": Column("rows of the sketch / D", "d"),
    "trials": Column("trials", "d"),
    "violations": Column("below the truth", "d"),
    "least": Column("least", ".2f"),
    "median": Column("median", ".2f"),
    "q95": Column("95 of 100", ".2f"),
    "most": Column("most", ".2f"),
    "within_4": Column("share up to 4", ".3f"),
    "problem": Column("problem"),
    "winnow_lm": Column("winnow lm", ".1f"),
    "winnow_newton_cg": Column("winnow newton_cg", ".1f"),
    "scipy_least_squares_trf": Column("scipy trf", ".1f"),
    "scipy_newton-cg": Column("scipy newton-cg", ".1f"),
    "scipy_l-bfgs-b": Column("scipy l-bfgs-b", ".1f"),
    "factor": Column("factor", ".3f"),
    "of_root": Column("times the root of rows per column", ".2f"),
    "median_steps": Column("steps, median", ".0f"),
    "slope": Column("slope", ".3f"),
    "slope_low": Column("from", ".3f"),
    "slope_high": Column("to", ".3f"),
    "searched": Column("searched"),
    "rank_of_bytes": Column("bytes of rank", "d"),
    "size": Column("rank or bits", "d"),
    "active_share": Column("density", ".4f"),
    "speedup": Column("times as fast", ".2f"),
    "dense_ms": Column("torch, ms", ".1f"),
    "heavy_ms": Column("active only, ms", ".1f"),
    "search_ms": Column("of which search, ms", ".1f"),
    "width": Column("width", "d"),
    "neurons": Column("neurons", "d"),
    "batch": Column("batch", "d"),
    "bytes_per_step": Column("MB/step", ".0f", 1e6),
    "gain": Column("times one sequence", ".2f"),
    "certified": Column("certified", ".1%"),
    "in_the_first_sample": Column("in the first sample", ".1%"),
    "uniform_rows": Column("as many rows taken uniformly", ".1%"),
    "rows_kept": Column("rows kept, median", ".0f"),
    "t_gates": Column("T gates without QRAM", ".1e"),
    "kind": Column("kind"),
    "statistical_covers": Column("reads covered", ".1%"),
    "statistical_over_error": Column("bound over error", ".1f"),
    "state_bytes": Column("state, kB", ".0f", 1e3),
    "position": Column("old positions"),
    "context": Column("context", "d"),
    "bytes_per_layer": Column("kB a layer", ".0f", 1e3),
    "full": Column("full", ".1f"),
    "window": Column("window", ".1f"),
    "hybrid": Column("hybrid", ".1f"),
    "hybrid_off": Column("remainder off", ".1f"),
    "calibrated": Column("by head", ".1f"),
    "best": Column("best"),
    "step_us": Column("stream, us/token", ".0f"),
    "exact_held_bytes": Column("exact keys and values, kB", ".0f", 1e3),
    "exact_quickest_us": Column("exact, us/token", ".0f"),
    "exact_quickest": Column("by"),
    "break_even_tokens": Column("smaller than keys and values beyond, tokens"),
    "error_flat": Column("error, flat scores", ".2f"),
    "error_sharp": Column("error, sharp scores", ".2f"),
    "is_convex": Column("weights never negative"),
    "least_degree": Column("least degree that finds it"),
    "foretold_degree": Column("foretold"),
    "even_degree": Column("degree to take"),
    "input": Column("input"),
    "recovered": Column("fitted whole", ".0%"),
    "starts": Column("starts, median", ".1f"),
    "noise_found": Column("noise fitted"),
    "ppl": Column("perplexity", ".2f"),
    "ppl_dense": Column("perplexity, dense", ".3f"),
    "ppl_sparse": Column("perplexity, sparse", ".3f"),
}


def render(text: str, root: Path = ROOT) -> str:
    """Return `text` with every marker filled from the result file that it names; idempotent."""

    def fill(match: re.Match[str]) -> str:
        path, key, form, _ = match.groups()
        opening = match[0][: match[0].index("-->") + 3]
        return f"{opening}{_show(_read(root / path), key, form or '')}<!-- end -->"

    filled = MARKER.sub(fill, text)
    if filled.count("<!-- from ") != len(MARKER.findall(filled)):
        raise TableError("a `<!-- from file: key -->` marker is malformed or has no `<!-- end -->`")
    return filled


def _read(path: Path) -> Any:
    if not path.exists():
        raise TableError(
            f"{path.name} does not exist in {path.parent.name}/; run the benchmark that writes it"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _show(result: Any, key: str, form: str) -> str:
    if form.startswith("table "):
        return f"\n{table(lookup(result, key), [f.strip() for f in form[6:].split(',')])}\n"
    above, slash, below = key.partition(" / ")
    value = lookup(result, above)
    return format(value / lookup(result, below) if slash else value, form)


def lookup(result: Any, key: str) -> Any:
    """Follow `key` into `result`; a `[field=value]` step must find exactly one row."""
    position, value = 0, result
    while position < len(key):
        step = STEP.match(key, position)
        if step is None:
            raise TableError(f"`{key}` is no path of names, [index] and [field=value]")
        name, index, field, wanted = step.groups()
        try:
            value = _one(value, field, wanted) if field else value[int(index) if index else name]
        except (KeyError, IndexError, TypeError):
            raise TableError(f"`{key}` leads nowhere at `{step[0]}`") from None
        position = step.end()
    return value


def _one(rows: list[dict[str, Any]], field: str, wanted: str) -> dict[str, Any]:
    found = [row for row in rows if str(row[field]) == wanted]
    if len(found) != 1:
        raise TableError(f"{len(found)} rows have {field}={wanted}; a key needs exactly one")
    return found[0]


def table(rows: list[dict[str, Any]], fields: list[str]) -> str:
    """Return a Markdown table of `fields`, a line per row; numbers stand to the right, gaps are dashes."""
    columns = [COLUMNS.get(field, Column(field.replace("_", " "))) for field in fields]
    is_number = [any(isinstance(row.get(field), int | float) for row in rows) for field in fields]
    head = [column.heading for column in columns]
    rule = ["---:" if number else "---" for number in is_number]
    body = [[_cell(row.get(f), c) for f, c in zip(fields, columns, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *body])


def _cell(value: Any, column: Column) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value / column.unit if column.unit != 1 else value, column.form)


def documents(root: Path = ROOT) -> list[Path]:
    """Return README.md, docs/*.md and the bundled models' cards, those that exist."""
    paths = [
        root / "README.md",
        *sorted((root / "docs").glob("*.md")),
        *sorted((root / "src/winnow/zoo").glob("*/README.md")),
    ]
    return [path for path in paths if path.exists()]


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the documents whose figures changed; with --check only name them and return 1."""
    parser = argparse.ArgumentParser(prog="scripts/tables", description=main.__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if something would change"
    )
    options = parser.parse_args(arguments)
    stale = [path for path in documents() if path.read_text(encoding="utf-8") != _rendered(path)]
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'not current' if options.check else 'rewritten'}")
        if not options.check:
            path.write_text(_rendered(path), encoding="utf-8")
    return int(options.check and bool(stale))


def _rendered(path: Path) -> str:
    try:
        return render(path.read_text(encoding="utf-8"))
    except TableError as error:
        raise SystemExit(f"{path.name}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
