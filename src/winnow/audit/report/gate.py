"""Gate: conditions on a finding, and the exit code of a job that depends on it.   (floor 5 · audit)"""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from winnow.audit.report.finding import Finding
from winnow.base.errors import UsageError

OPERATORS = MappingProxyType(
    {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt}
)
FIELDS = ("exact_match", "token_recall", "seconds")
SPELT = re.compile(r"\s*([a-z_][a-z_0-9]*)\s*(>=|<=|==|>|<)\s*(-?\d+(?:\.\d*)?(?:e-?\d+)?)\s*")
PASSED, SHUT, VOID = 0, 1, 1


@final
@dataclass(frozen=True)
class Condition:
    """One comparison of a figure of a finding with a number."""

    name: str
    compares: str
    bound: float

    @classmethod
    def read(cls, text: str) -> "Condition":
        """Read ``exact_match>0``; the figure is one of `FIELDS` or of the certificate. Raises UsageError."""
        match = SPELT.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} is no condition; expected a figure, a comparison, a number: exact_match>0"
            )
        return cls(match[1], match[2], float(match[3]))

    def holds(self, finding: Finding) -> bool:
        """Whether the finding meets this condition. Raises UsageError for a figure that it does not have."""
        value = getattr(finding, self.name) if self.name in FIELDS else finding.certificate.get(self.name)
        if not isinstance(value, int | float):
            known = [*FIELDS, *(k for k, v in finding.certificate.items() if isinstance(v, int | float))]
            raise UsageError(f"{self.name} is no figure of this audit; expected one of {', '.join(known)}.")
        compare: Callable[[float, float], bool] = OPERATORS[self.compares]
        return compare(float(value), self.bound)

    def __str__(self) -> str:
        """As it is spelt on a command line."""
        return f"{self.name}{self.compares}{self.bound:g}"


def exit_code(finding: Finding, conditions: Sequence[Condition]) -> int:
    """Return 0 where the audit counts and no condition holds, else 1: a void audit passes no gate.

    Raises UsageError for a condition on a figure that the audit does not have.
    """
    is_shut = [condition.holds(finding) for condition in conditions]
    return SHUT if any(is_shut) or finding.is_void else PASSED
