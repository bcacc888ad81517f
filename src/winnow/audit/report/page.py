"""Page: one finding as an HTML file that loads nothing, and as one JSON object.   (floor 5 · audit)"""

import math
from collections.abc import Mapping
from html import escape

from winnow.audit.report.finding import REDACTED, Cell, Finding, Table

STYLE = """
body{font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;color:#22272e;
max-width:800px;margin:2.5em auto;padding:0 1.2em;background:#fff}
h1{font-size:1.5em;margin:0 0 .2em}h2{font-size:1.1em;margin:2em 0 .5em}
.subject{color:#667080;margin:0 0 1.2em}
.verdict{border-left:6px solid #2a6f97;background:#f2f6f9;padding:.8em 1.1em;font-size:1.1em}
.leak{border-color:#c8553d;background:#fbf1ee}.void{border-color:#b08900;background:#fdf8e7}
.figures{display:flex;gap:2.5em;margin:1.2em 0;flex-wrap:wrap}
.figures div{color:#667080}.figures b{display:block;font-size:1.5em;color:#22272e;font-weight:600}
table{border-collapse:collapse;width:100%;font-size:.92em}th,td{padding:.3em .6em;text-align:right;
border-bottom:1px solid #e6e9ee}th{color:#667080;font-weight:500}
th:first-child,td:first-child{text-align:left}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f7f9;padding:.8em;margin:.3em 0}
.redacted{color:#667080;font-style:italic}svg{width:100%;height:auto}
footer{color:#667080;font-size:.85em;margin-top:3em}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def as_json(finding: Finding, *, show_text: bool = False) -> dict[str, object]:
    """Return the finding as one object of plain values; texts and ids only with `show_text`.

    A void audit says so in `verdict` and in `void`; its figures stay, so that the failure can be seen.
    """
    return {
        "audit": finding.audit,
        "subject": finding.subject,
        "void": finding.is_void,
        "verdict": finding.headline,
        "exact_match": finding.exact_match,
        "token_recall": finding.token_recall,
        "seconds": finding.seconds,
        "controls": {
            "planted_found": finding.controls.planted_found,
            "noise_found": finding.controls.noise_found,
            "notes": list(finding.controls.notes),
        },
        "certificate": dict(finding.certificate),
        "details": dict(finding.details),
        "recovered": [
            {
                "name": piece.name,
                "n_tokens": piece.n_tokens,
                "text": piece.text if show_text else None,
                "token_ids": list(piece.token_ids) if show_text else None,
            }
            for piece in finding.recovered
        ],
        "tables": [
            {"title": table.title, "columns": list(table.columns), "rows": [list(row) for row in table.rows]}
            for table in finding.tables
        ],
        "does_not_show": list(finding.does_not_show),
    }


def as_html(finding: Finding, *, show_text: bool = False) -> str:
    """Return the finding as one HTML page; texts only with `show_text`.

    The page holds no script and refuses to load anything; every text in it is escaped.
    """
    title = f"Audit: {finding.audit}"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f'<h1>{escape(title)}</h1><p class="subject">{escape(finding.subject)}</p>',
        f'<div class="verdict {_kind(finding)}">{escape(_sentence(finding.headline))}</div>',
        _figures(finding),
        *(f"<h2>{escape(plot.title)}</h2>{plot.svg()}" for plot in finding.plots),
        *(_table(table) for table in finding.tables),
        _recovered(finding, show_text),
        _controls(finding),
        _pairs("Certificate", finding.certificate),
        _pairs("Details", finding.details),
        "<h2>Does not show</h2>",
        *(f"<p>{escape(sentence)}</p>" for sentence in finding.does_not_show),
        "<footer>Written by Winnow. This file loads nothing and sends nothing.</footer></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _kind(finding: Finding) -> str:
    if finding.is_void:
        return "void"
    return "leak" if finding.exact_match > 0 or finding.token_recall > 0 else ""


def _figures(finding: Finding) -> str:
    shown = (
        (f"{100 * finding.exact_match:.1f} %", "read back whole"),
        (f"{100 * finding.token_recall:.1f} %", "of tokens read back"),
        (f"{finding.seconds:.1f} s", "for the audit"),
    )
    void = " (void)" if finding.is_void else ""
    figures = "".join(f"<div><b>{escape(value)}</b>{escape(words + void)}</div>" for value, words in shown)
    return f'<div class="figures">{figures}</div>'


def _recovered(finding: Finding, show_text: bool) -> str:
    if not finding.recovered:
        return ""
    parts = ["<h2>What was read back</h2>"]
    for piece in finding.recovered:
        head = f"{piece.name}, {piece.n_tokens} tokens"
        hidden = f'<span class="redacted">{REDACTED}; --show-text reveals it</span>'
        body = f"<pre>{escape(piece.text)}</pre>" if show_text else hidden
        parts.append(f"<p>{escape(head)}: {body}</p>" if not show_text else f"<p>{escape(head)}:</p>{body}")
    return "".join(parts)


def _controls(finding: Finding) -> str:
    controls = finding.controls
    rows = (
        ("a planted secret", "found" if controls.planted_found else "not found", "found"),
        ("noise", "a secret found" if controls.noise_found else "nothing found", "nothing found"),
    )
    table = _table(Table("Controls", ("looked for", "result", "must be"), rows))
    return table + "".join(f"<p>{escape(_sentence(note))}</p>" for note in controls.notes)


def _pairs(title: str, pairs: Mapping[str, Cell]) -> str:
    rows = tuple((key.replace("_", " "), value) for key, value in pairs.items())
    return _table(Table(title, ("", "value"), rows)) if rows else ""


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = ("".join(f"<td>{escape(_cell(cell))}</td>" for cell in row) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<h2>{escape(table.title)}</h2><table><tr>{head}</tr>{body}</table>"


def _cell(cell: Cell) -> str:
    match cell:
        case None:
            return "unknown"
        case bool():
            return "yes" if cell else "no"
        case float():
            return f"{cell:.4g}" if math.isfinite(cell) else "unbounded"
        case _:
            return str(cell)
