"""Groups: int4, 32 weights in halves of bytes with a scale.   (floor 1 · kernels)

    scale   peak / -8, or with 7.5 to 9 in place of 8: of the seven the one that loses least in squares
    step    round(weight / scale) in -8..7

The peak is the group's largest magnitude, the first of several, with its sign.

    reference.py   the definition
    group.hpp      the same, group by group
"""

from winnow.kernels.pack.groups.reference import GROUP, from_int4, to_int4

__all__ = ["GROUP", "from_int4", "to_int4"]
