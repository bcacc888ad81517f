"""Quantum: least squares by rows that a simulated quantum search samples.   (floor 2 · linalg)

After arXiv:2311.14823 (abstract), construction ours. Rows are sampled by leverage with about ``sqrt(N k)``
superposition queries for k rows; the sampled problem is solved and certified on an ordinary computer. The
simulation is honest: an algorithm sees only what it measures or reads, every outcome has its exact
probability, and a ledger counts calls as they are made.

reference.py   the definition of amplitude amplification
ledger.py      what was asked
plane.py       amplification in two dimensions: exact outcomes for any N
heavy.py       find every flagged row
copies.py      many rows from one weighted superposition
halving.py     leverage scores by repeated halving
report.py      queries beside reads
circuit.py     real circuits of up to 64 rows, by Qiskit
certified.py   how far from the best a solution may be, by all of A
solve.py       quantum_lstsq
"""

from winnow.linalg.quantum.halving import Level
from winnow.linalg.quantum.ledger import QueryLedger
from winnow.linalg.quantum.report import QueryReport
from winnow.linalg.quantum.solve import QuantumSolution, quantum_lstsq

__all__ = ["Level", "QuantumSolution", "QueryLedger", "QueryReport", "quantum_lstsq"]
