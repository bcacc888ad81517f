"""Linalg: least squares, the rows that matter, and the accounts that other floors keep.   (floor 2 · linalg)

rows.py            a matrix as something that is read row by row
gate.py            what may be solved, checked once
triangle.py        what makes a problem well conditioned, and what it says of the matrix
refine.py          conjugate gradients, measured errors, the certificate
cost.py            which method is likely the quickest here
result.py          a solution, and what is known of it
solvers.py         gram, sketch, lapack
least_squares.py   lstsq
sampling.py        leverage scores, sampled rows, few labels
estimators.py      for scikit-learn; import it by its name
privacy/           what a run that adds Gaussian noise may still reveal of one record
two_layer/         softmax under ReLU regression: closed derivatives, five methods
quantum/           rows sampled by a simulated quantum search, its queries counted
"""

from winnow.linalg.least_squares import lstsq
from winnow.linalg.quantum import quantum_lstsq
from winnow.linalg.result import Result
from winnow.linalg.rows import RowBlocks
from winnow.linalg.sampling import ActiveResult, active_lstsq, leverage_scores, sample_rows
from winnow.linalg.two_layer import two_layer

__all__ = [
    "ActiveResult",
    "Result",
    "RowBlocks",
    "active_lstsq",
    "leverage_scores",
    "lstsq",
    "quantum_lstsq",
    "sample_rows",
    "two_layer",
]
