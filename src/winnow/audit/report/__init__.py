"""Report: what an audit found, for a person, for a program, for a gate in CI.   (floor 5 · audit)

    finding = Finding(audit="attention", verdict=..., exact_match=..., ...)
    finding.is_void                       a control failed: nothing else in it counts
    as_json(finding, show_text=False)     one object
    as_html(finding, show_text=False)     one file, nothing loaded from elsewhere
    Condition.read("exact_match>0")       .holds(finding) -> the gate is shut

plots.py     small drawings: bars beside their names
finding.py   the result of any audit, and its controls
gate.py      conditions such as exact_match>0
page.py      the HTML file and the JSON object
"""

from winnow.audit.report.finding import Cell, Controls, Finding, Recovered, Table
from winnow.audit.report.gate import Condition, exit_code
from winnow.audit.report.page import as_html, as_json
from winnow.audit.report.plots import Bar, Bars

__all__ = [
    "Bar",
    "Bars",
    "Cell",
    "Condition",
    "Controls",
    "Finding",
    "Recovered",
    "Table",
    "as_html",
    "as_json",
    "exit_code",
]
