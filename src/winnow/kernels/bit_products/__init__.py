"""Bit products: which pairs of +-1 vectors agree in most coordinates.   (floor 1 · kernels)

    product = width - 2 * distance        distance: how many bits differ

A vector of +-1 is a row of 64-bit words, bit 1 for +1. Comparing two costs width / 64 exclusive ors and
counts, and no pair is written unless it is within the limit: n^2 outputs become the few that are found. A
scan may look at short vectors first, bits drawn from the whole ones, and at the whole ones of survivors only.

    reference.py    the definition
    scan.py         planes, and a scan with room for all that it finds
    bits.hpp        the loops: four rows against a panel of columns, eight columns to a register
    vpopcntdq.cpp   counts by the instruction of that name, where the processor has it
    cpu.cpp         counts by table (AVX2) or by sums; listed pairs; sampled bits; signs into bits
    calls.hpp       what Python calls, checked
"""

import numpy as np
from jaxtyping import Int64, UInt64

from winnow.base.errors import UsageError
from winnow.kernels.bit_products.reference import bit_products_reference
from winnow.kernels.bit_products.scan import bit_planes, found_by
from winnow.kernels.cpu import Cpu
from winnow.kernels.operands import BitScan

__all__ = ["bit_products", "bit_products_reference"]


def bit_products(
    a: UInt64[np.ndarray, "N words"], b: UInt64[np.ndarray, "M _"], *, limit: int, cpu: Cpu
) -> Int64[np.ndarray, "found 3"]:
    """Return (row of a, row of b, distance) of every pair with at most `limit` differing bits, ascending.

    Exact. Costs ``N * M * words`` counts of 64 bits; memory for a transposed copy of `b` and 36 bytes per
    pair found. Raises UsageError for vectors of different length or none.
    """
    if a.shape[1] != b.shape[1] or a.shape[1] == 0:
        raise UsageError(
            f"a has {a.shape[1]} words and b {b.shape[1]}, expected the same number, at least 1."
        )
    return found_by(BitScan(np.ascontiguousarray(a), bit_planes(b), len(b), limit), cpu)[0]
