"""Ledger: what a run asked of the rows, counted as it asked.   (floor 2 · linalg)"""

from dataclasses import dataclass


@dataclass
class QueryLedger:
    """Counters that the primitives raise at each call; nothing is ever added by a formula.

    A superposition query maps ``|i>|0>`` to ``|i>|row_i>`` for all i at once; an uncompute is the same call
    backwards, which any quantum program needs to keep its states pure. Both are simulated here; a row read
    and a comparison happen on an ordinary computer or inside the oracle's arithmetic.
    """

    superposition_queries: int = 0
    uncomputes: int = 0
    row_reads: int = 0
    comparisons: int = 0
    measurements: int = 0

    def load(self) -> None:
        """Count one application of the oracle and one of its inverse, with its comparison between them."""
        self.superposition_queries += 1
        self.comparisons += 1
        self.uncomputes += 1

    def measure(self) -> None:
        """Count one measurement, which ends a quantum run."""
        self.measurements += 1

    def read(self, n_rows: int) -> None:
        """Count rows that were read classically."""
        self.row_reads += n_rows

    @property
    def quantum_queries(self) -> int:
        """Calls of the oracle in either direction."""
        return self.superposition_queries + self.uncomputes
