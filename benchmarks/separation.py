"""Separation: which degree finds a needle among n rows, measured on the probe and foretold by a formula.

    python -m benchmarks.separation [--out NAME]

Each cell is the margin of `winnow.attention.separation_probe`: how far the needle's row rises above the
threshold when all signs are right, in units of sqrt(ln n). The boundary is `min_poly_degree` for the weight
from which the needle is found. Writes separation.json and docs/separation.svg. Closed form: nothing is
timed, so machine and load do not matter.
"""

import argparse
from collections.abc import Sequence
from html import escape

from benchmarks.recorded import ROOT, machine, record

from winnow.attention import Needle, min_poly_degree, separation_probe
from winnow.base.chart import BOTTOM, HEIGHT, INK, LEFT, RIGHT, TOP, WIDTH, Words, line, page, text
from winnow.base.files import replacing

DEGREES = range(1, 13)
LOG2_LENGTHS = range(6, 21)
TRIALS = 400
PICTURE = ROOT / "docs/separation.svg"


def rows_of(needle: Needle, log2_lengths: Sequence[int] = LOG2_LENGTHS, trials: int = TRIALS) -> list[dict]:
    """Return one row per length: what each degree and softmax attention make of the needle."""
    signal, noise = needle.shown**2 + needle.b**2 + needle.c**2, needle.c**2
    rows = []
    for log2_n in log2_lengths:
        n = 2**log2_n
        cells = {degree: separation_probe(degree, n, needle, trials=trials, rng=0) for degree in DEGREES}
        exp = separation_probe("exp", n, needle, trials=trials, rng=0)
        first = min((d for d, cell in cells.items() if cell.margin > 0), default=None)
        foretold = min_poly_degree(n, signal, noise, needle.found_above)
        rows.append(
            {
                "n": n,
                "least_degree": first,
                "foretold_degree": foretold,
                "largest_lost_degree": max((d for d, c in cells.items() if c.says == "lost"), default=0),
                "even_degree": None if first is None else first + first % 2,
                "is_within_2": first is not None and abs(first - foretold) <= 2,
                "softmax_weight": exp.weight,
                "softmax_found": exp.found_with,
                "margins": {str(degree): cell.margin for degree, cell in cells.items()},
                "found": {str(degree): cell.found_with for degree, cell in cells.items()},
                "found_without": max(cell.found_without for cell in (*cells.values(), exp)),
            }
        )
    return rows


def picture(rows: Sequence[dict], needle: Needle) -> str:
    """Return the SVG: a cell per length and degree, coloured by its margin, and the foretold boundary."""
    wide = (WIDTH - LEFT - RIGHT) / len(rows)
    high = (HEIGHT - TOP - BOTTOM) / len(DEGREES)
    parts, steps = [], []
    for at, row in enumerate(rows):
        x = LEFT + at * wide
        parts.append(
            text(x + wide / 2, HEIGHT - BOTTOM + 19, f"2^{row['n'].bit_length() - 1}", "tick", "middle")
        )
        for degree in DEGREES:
            y = HEIGHT - BOTTOM - (degree - DEGREES[0] + 1) * high
            margin = row["margins"][str(degree)]
            title = escape(f"n {row['n']}, degree {degree}: margin {margin:.2f}")
            box = f'x="{x:.1f}" y="{y:.1f}" width="{wide - 1:.1f}" height="{high - 1:.1f}"'
            parts.append(f'<rect {box} fill="{_colour(margin, needle)}"><title>{title}</title></rect>')
        steps.append((x, HEIGHT - BOTTOM - (row["foretold_degree"] - DEGREES[0]) * high, x + wide))
    for degree in DEGREES:
        y = HEIGHT - BOTTOM - (degree - DEGREES[0] + 0.5) * high
        parts.append(text(LEFT - 10, y + 4, str(degree), "tick", "end"))
    parts += [line((x, y), (end, y), INK, 3) for x, y, end in steps]
    words = Words(
        "Which degree of polynomial attention finds one token among n",
        "blue: found; grey: lost; the darker the clearer. Lines: the least degree by min_poly_degree",
        "tokens in the context",
        "degree",
    )
    return page(words, parts)


def _colour(margin: float, needle: Needle) -> str:
    """Return blue above zero and grey below, deeper away from it."""
    best, worst = needle.shown - needle.theta, 2 * needle.b + needle.theta
    share = min(1.0, margin / best if margin > 0 else -margin / worst)
    light, dark = ((214, 229, 240), (42, 111, 151)) if margin > 0 else ((240, 240, 240), (150, 156, 165))
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(light, dark, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Write separation.json and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="separation")
    arguments = parser.parse_args(argv)
    needle = Needle()
    rows = rows_of(needle)
    record(
        arguments.out,
        {
            "machine": machine(),
            "trials": TRIALS,
            "rows": rows,
            "all_within_2": all(r["is_within_2"] for r in rows),
        },
    )
    with replacing(PICTURE) as draft:
        draft.write_text(picture(rows, needle), encoding="utf-8")


if __name__ == "__main__":
    main()
