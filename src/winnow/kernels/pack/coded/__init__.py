"""Coded: bfloat16 in twelve bits a weight, nothing lost.   (floor 1 · kernels)

    low byte     the exponent's last bit and the mantissa: as it is, eight bits
    high byte    the sign and the rest of the exponent: one of the row's sixteen most frequent, four bits
    patch        a weight with another high byte: its column and its sixteen bits, in front of the row

A row of 2048 normally distributed weights leaves a weight to patches one time in 250, heavy tails leave some
more; where a row leaves more than there is room for, eleven of 2048, its matrix stays bfloat16.

    reference.py   the layout, and the weights that coded rows stand for: the definition
    encode.py      rows from weights; whether rows that were read are sound
    row.hpp        the same, row by row
"""

from winnow.kernels.pack.coded.encode import is_sound, to_coded
from winnow.kernels.pack.coded.reference import can_code, coded_row_bytes, from_coded

__all__ = ["can_code", "coded_row_bytes", "from_coded", "is_sound", "to_coded"]
