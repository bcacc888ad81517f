"""Report: queries beside reads, and where the one overtakes the other.   (floor 2 · linalg)

A query and a read are counted alike, which flatters the quantum side: it assumes a memory (QRAM) that answers
in superposition in one step. Without such a memory a query is a circuit that touches every row, about 4 T
gates for each (a QROM of N rows), and the advantage is gone; `t_gates` says how many that would be.

Does not show time: nothing here ran on quantum hardware, and counts are not seconds.
"""

import math
from dataclasses import dataclass

from winnow.linalg.quantum.ledger import QueryLedger

T_GATES_PER_ROW = 4


@dataclass(frozen=True)
class QueryReport:
    """What the ledger holds, beside what an ordinary computer reads: every row once."""

    n_rows: int
    superposition_queries: int
    uncomputes: int
    row_reads: int
    comparisons: int
    measurements: int

    @property
    def quantum_queries(self) -> int:
        """Calls of the oracle in either direction."""
        return self.superposition_queries + self.uncomputes

    @property
    def classical_reads(self) -> int:
        """Row reads of the ordinary solver, which reads all of A once."""
        return self.n_rows

    @property
    def crossover_rows(self) -> int:
        """The N from which queries and reads together are fewer than N, queries growing as ``sqrt(N)``."""
        slope = self.quantum_queries / math.sqrt(self.n_rows)
        return math.ceil(((slope + math.sqrt(slope**2 + 4.0 * self.row_reads)) / 2.0) ** 2)

    @property
    def t_gates(self) -> int:
        """T gates of all queries without QRAM, each a table look-up over N rows."""
        return T_GATES_PER_ROW * self.n_rows * self.quantum_queries

    def __str__(self) -> str:
        """Return the two columns and the two caveats as text."""
        if not self.quantum_queries:
            return f"All {self.n_rows:,} rows were read: so few are not worth a search."
        return (
            f"quantum    {self.quantum_queries:,} oracle calls (half of them uncomputes), "
            f"{self.row_reads:,} row reads\n"
            f"classical  {self.classical_reads:,} row reads\n"
            f"fewer from N = {self.crossover_rows:,} rows on, if a QRAM answers each call in one step\n"
            f"without a QRAM: {self.t_gates:.2e} T gates, more than reading the rows"
        )


def report_of(ledger: QueryLedger, n_rows: int) -> QueryReport:
    """Return what `ledger` holds of a problem with `n_rows` rows."""
    return QueryReport(
        n_rows=n_rows,
        superposition_queries=ledger.superposition_queries,
        uncomputes=ledger.uncomputes,
        row_reads=ledger.row_reads,
        comparisons=ledger.comparisons,
        measurements=ledger.measurements,
    )
