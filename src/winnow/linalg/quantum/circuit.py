"""Circuit: the same amplification gate by gate; needs the extra `quantum`.   (floor 2 · linalg)

For 64 rows at most: an index register in uniform superposition, one flag turned by a multiplexed RY through
the angle ``2 asin(sqrt(p_i))``, then Grover iterations. Qiskit runs it on a state vector and measures both
registers.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int64

from winnow.base.errors import ResourceError, UsageError
from winnow.linalg.quantum.plane import phases

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

MOST_ROWS = 64
Chances = Float[np.ndarray, " N"]
Turns = tuple[tuple[float, float], ...]


def grover_turns(iterations: int) -> Turns:
    """Return the phases of `iterations` plain Grover iterations."""
    return ((math.pi, math.pi),) * iterations


def fixed_point_turns(loads: int, failure: float) -> Turns:
    """Return the phases of a fixed-point search of `loads` loads."""
    return tuple(phases(loads, failure))


def amplification(chances: Chances, turns: Turns) -> "QuantumCircuit":
    """Return the circuit that loads, turns and does not measure yet; the flag is the last qubit.

    N is a power of two, 2 to 64: pad with rows of chance 0. Raises UsageError for others, ResourceError
    where Qiskit is not installed.
    """
    n_qubits = int(math.log2(len(chances))) if 2 <= len(chances) <= MOST_ROWS else 0
    if n_qubits < 1 or 2**n_qubits != len(chances):
        raise UsageError(
            f"{len(chances)} rows were given, expected 2, 4, ... or {MOST_ROWS}: pad with chances of 0."
        )
    if not ((chances >= 0.0) & (chances <= 1.0)).all():
        raise UsageError("chances hold a number outside 0..1; divide by the largest.")
    try:
        from qiskit import QuantumCircuit  # noqa: PLC0415 (an optional extra)
        from qiskit.circuit.library import UCRYGate  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ResourceError("circuits need the package qiskit: pip install 'winnow-llm[quantum]'") from None
    flag, every = n_qubits, list(range(n_qubits + 1))
    load = QuantumCircuit(n_qubits + 1)
    load.h(range(n_qubits))
    load.append(UCRYGate([2.0 * math.asin(math.sqrt(p)) for p in chances]), [flag, *range(n_qubits)])
    circuit = load.copy()
    for turn_start, turn_good in turns:
        circuit.p(turn_good, flag)
        circuit.compose(load.inverse(), inplace=True)
        circuit.x(every)
        circuit.mcp(-turn_start, every[:-1], flag)
        circuit.x(every)
        circuit.compose(load, inplace=True)
    return circuit


def measured(chances: Chances, turns: Turns, shots: int, seed: int) -> Int64[np.ndarray, "N 2"]:
    """Return how often each (row, flag) was measured in `shots` runs of the circuit."""
    circuit = amplification(chances, turns)
    from qiskit.primitives import StatevectorSampler  # noqa: PLC0415 (an optional extra)

    circuit.measure_all()
    result = StatevectorSampler(seed=seed).run([circuit], shots=shots).result()
    found = result[0].data["meas"].get_int_counts()
    counts = np.zeros((len(chances), 2), dtype=np.int64)
    for outcome, times in found.items():
        counts[outcome % len(chances), outcome // len(chances)] = times
    return counts
