"""Finding: the result of any audit, and the controls that make it count.   (floor 5 · audit)"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from winnow.audit.report.plots import Bars
from winnow.base.errors import UsageError

Cell = str | int | float | bool | None
REDACTED = "redacted"


@final
@dataclass(frozen=True)
class Controls:
    """What the audit did beside its subject: look for a planted secret, and look into noise.

    `planted_found` must be true, `noise_found` false; else the audit is void. `notes` say what was planted
    and what the noise was.
    """

    planted_found: bool
    noise_found: bool
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """What went wrong, in sentences; empty where the audit counts."""
        planted = "the planted secret was not found, so that finding nothing means nothing"
        noise = "noise yielded a secret, so that finding one means nothing"
        return ((planted,) if not self.planted_found else ()) + ((noise,) if self.noise_found else ())


@final
@dataclass(frozen=True)
class Recovered:
    """A piece that was read back: what it is, how long in tokens, the text itself and its ids.

    Text and ids leave a report only on request. Nothing that is computed from them alone (a hash, a length in
    characters) is shown either: short texts are guessed from such.
    """

    name: str
    n_tokens: int
    text: str
    token_ids: tuple[int, ...] = ()


@final
@dataclass(frozen=True)
class Table:
    """Rows of figures under one title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        """Refuse ragged rows."""
        if any(len(row) != len(self.columns) for row in self.rows):
            raise UsageError(f"a row of {self.title!r} has other cells than its {len(self.columns)} columns.")


@final
@dataclass(frozen=True)
class Finding:
    """What one audit found.

    `exact_match` is the share of secrets read back whole, `token_recall` that of their tokens: against the
    truth where the audit knows it, else as certified by recomputing what was exposed. `certificate` holds the
    figures by which a reader can check the claim without the secret. `does_not_show` is never empty.
    """

    audit: str
    subject: str
    verdict: str
    exact_match: float
    token_recall: float
    seconds: float
    controls: Controls
    certificate: Mapping[str, Cell]
    does_not_show: tuple[str, ...]
    recovered: tuple[Recovered, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Bars, ...] = ()
    details: Mapping[str, Cell] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse shares outside 0..1 and a finding that claims to show everything."""
        for name, share in (("exact_match", self.exact_match), ("token_recall", self.token_recall)):
            if not 0.0 <= share <= 1.0:
                raise UsageError(f"{name} is {share}; expected a share from 0 to 1.")
        if not self.does_not_show:
            raise UsageError("does_not_show is empty; expected at least one sentence on what remains open.")

    @property
    def is_void(self) -> bool:
        """Whether a control failed."""
        return bool(self.controls.failures)

    @property
    def headline(self) -> str:
        """The verdict, or why there is none."""
        return f"void: {'; '.join(self.controls.failures)}" if self.is_void else self.verdict
