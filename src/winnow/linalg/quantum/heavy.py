"""Heavy: find every flagged row, however many there are.   (floor 2 · linalg)"""

import math

import numpy as np

from winnow.linalg.quantum.ledger import QueryLedger
from winnow.linalg.quantum.plane import NONE, Register, fixed_point_loads

GROWTH = 1.2  # of the range of iterations after a miss (Boyer, Brassard, Hoyer, Tapp: anything in (1, 4/3))
FAILURE = 1e-3


def find_all(is_flagged: np.ndarray, ledger: QueryLedger, draws: np.random.Generator) -> list[int]:
    """Return the flagged rows of N, each once; misses some with probability about ``FAILURE``.

    Runs of random length find one after the other; when they grow too long, a fixed-point search says whether
    any is left. Around ``4 sqrt(N k)`` loads for k rows and ``4 sqrt(N)`` for the answer that none is left.
    """
    register = Register(is_flagged.astype(np.float64), ledger, draws)
    longest = math.sqrt(len(register))
    found: list[int] = []
    limit = longest  # ask first whether there is any: most often there is none
    while True:
        if limit < longest:
            index = register.amplified(int(draws.integers(0, math.ceil(limit))))
            # Ranges settle where a third of the runs hit: near the cheapest, and never far beyond it.
            limit = limit * GROWTH if index == NONE else max(1.0, limit / GROWTH**2)
            if index == NONE:
                continue
        else:
            index = register.fixed_point(fixed_point_loads(1.0 / len(register), FAILURE), FAILURE)
            limit = longest / GROWTH**2
            if index == NONE:
                return sorted(found)
        found.append(index)
        register.hide(index)
