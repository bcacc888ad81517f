"""Plane: amplitude amplification in the two dimensions that it never leaves.   (floor 2 · linalg)

    U |0> = cos(theta) |bad> + sin(theta) |good>        sin(theta)^2 = sum of chances / N

A Grover iteration turns this plane by 2 theta, whatever N is, so ten million rows are simulated by two
numbers and every outcome has its exact probability, ``sin((2 m + 1) theta)^2`` after m iterations. Given
"good", row i appears with probability ``p_i / sum of p``, also exactly.

The simulator knows all chances; a `Register` lets an algorithm see only what it measures and what it reads.
"""

import math

import numpy as np
from jaxtyping import Float

from winnow.linalg.quantum.ledger import QueryLedger

NONE = -1  # the flag was measured as 0


class Register:
    """N rows in superposition, row i flagged with amplitude ``sqrt(p_i)``; p in [0, 1]."""

    def __init__(
        self, chances: Float[np.ndarray, " N"], ledger: QueryLedger, draws: np.random.Generator
    ) -> None:
        self._chances = chances.copy()
        self._ledger, self._draws = ledger, draws
        self._cumulated: Float[np.ndarray, " N"] | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self._chances)

    def hide(self, index: int) -> None:
        """Let row `index` never be flagged again: it is known, and the oracle compares with what is known."""
        self._chances[index] = 0.0
        self._cumulated = None

    def amplified(self, iterations: int) -> int:
        """Prepare, iterate, measure: the row found, or NONE. ``2 iterations + 1`` loads."""
        theta = self._theta()
        good, bad = math.sin(theta), math.cos(theta)
        turn_good, turn_bad = math.sin(2.0 * theta), math.cos(2.0 * theta)
        self._ledger.load()
        for _ in range(iterations):
            self._ledger.load()  # U backwards
            self._ledger.load()  # U
            good, bad = turn_bad * good + turn_good * bad, turn_bad * bad - turn_good * good
        return self._measured(good * good)

    def fixed_point(self, loads: int, failure: float) -> int:
        """Search that does not overshoot: the row found, or NONE. `loads` is odd.

        Finds with probability at least ``1 - failure`` wherever the flagged share of the state is at least
        about ``(ln(2 / sqrt(failure)) / loads)^2`` (the phases of Yoder, Low and Chuang).
        """
        theta = self._theta()
        start = np.array([math.cos(theta), math.sin(theta)], dtype=complex)
        state = start.copy()
        self._ledger.load()
        for turn_start, turn_good in phases(loads, failure):
            self._ledger.load()
            self._ledger.load()
            state[1] *= np.exp(1j * turn_good)
            state = (1.0 - np.exp(-1j * turn_start)) * np.vdot(start, state) * start - state
        return self._measured(float(abs(state[1]) ** 2))

    def _theta(self) -> float:
        return math.asin(math.sqrt(min(1.0, float(self._cumulative()[-1]) / len(self))))

    def _measured(self, probability: float) -> int:
        self._ledger.measure()
        if self._draws.random() >= probability:
            return NONE
        cumulated = self._cumulative()
        return int(np.searchsorted(cumulated, self._draws.random() * cumulated[-1], side="right"))

    def _cumulative(self) -> Float[np.ndarray, " N"]:
        if self._cumulated is None:
            self._cumulated = np.cumsum(self._chances)
        return self._cumulated


def fixed_point_loads(share: float, failure: float) -> int:
    """Return how many loads `fixed_point` needs to find a flagged share of at least `share`; odd."""
    wanted = math.log(2.0 / math.sqrt(failure)) / math.sqrt(share)
    return 2 * math.ceil((wanted - 1.0) / 2.0) + 1


def phases(loads: int, failure: float) -> list[tuple[float, float]]:
    """Return the phases of a fixed-point search, about U|0> and about the flag, one pair per iteration."""
    n_turns = (loads - 1) // 2
    width = math.sqrt(max(0.0, 1.0 - 1.0 / math.cosh(math.acosh(1.0 / math.sqrt(failure)) / loads) ** 2))
    about = [
        2.0 * math.atan2(1.0, math.tan(2.0 * math.pi * j / loads) * width) for j in range(1, n_turns + 1)
    ]
    return [(about[j], -about[n_turns - 1 - j]) for j in range(n_turns)]
