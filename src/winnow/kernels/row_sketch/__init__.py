"""Row sketch: what least squares reads of a tall matrix, by passes over its rows.   (floor 1 · kernels)

    S @ A                 S a sparse sign matrix: `nonzeros` entries of +-1 per column, one in each part of S
    A.T @ A
    A.T @ (A @ x - b)     each row read once from memory
    |A @ P|^2 by rows

Row i of A goes where Philox4x32-10 with the counter i and the key `seed` says: the sketch is the same for any
pieces in which the rows come and any number of threads. Everything is summed in float64, whatever A is held
in. A column of S has norm sqrt(nonzeros); who wants 1 divides. The compiled sketch costs about a pass, since
a row of the result is held in registers while all rows of a batch that go there are added
(benchmarks/lstsq.py).

    reference.py   the definition
    passes.py      RowPasses: compiled, or by definition
    rows.hpp       what a level offers
    doubles.hpp    vectors of float64
    normal.cpp     normal equations, leverage scores, the triangle
    gram.cpp       the Gram matrix in tiles of registers
    sketch.cpp     the sketch; the table of one level
    passes.hpp     the passes as Python calls them
"""

from winnow.kernels.row_sketch.passes import SEGMENT, TILE, RowPasses, open_passes
from winnow.kernels.row_sketch.reference import philox, sign_entries, sketch_rows_reference

__all__ = [
    "SEGMENT",
    "TILE",
    "RowPasses",
    "open_passes",
    "philox",
    "sign_entries",
    "sketch_rows_reference",
]
