"""Pack: weights into the form in which products read them.   (floor 1 · kernels)

    float32, bfloat16   the nearest
    int8                scale = max |row| / 127,           value = round(weight / scale)
    int4                a scale for each 32 weights        see groups/
    coded               bfloat16 in twelve bits            see coded/

Not a call of a decode step: it happens once per weight, when a model is loaded, on threads of its own. Reads
the weights where they lie, transposed ones too.

    reference.py   the definition
    groups/        int4
    coded/         bfloat16 without the bits that it does not need
    check.py       what is refused
    writing.py     pack, pack_coded, unpack_coded
    cpu.cpp        blocks of 32 rows shared among the threads, each first made float32
"""

from winnow.kernels.pack.check import check_int4
from winnow.kernels.pack.coded import can_code, coded_row_bytes, from_coded, is_sound, to_coded
from winnow.kernels.pack.groups import GROUP, from_int4, to_int4
from winnow.kernels.pack.reference import to_int8
from winnow.kernels.pack.writing import pack, pack_coded, unpack_coded

__all__ = [
    "GROUP",
    "can_code",
    "check_int4",
    "coded_row_bytes",
    "from_coded",
    "from_int4",
    "is_sound",
    "pack",
    "pack_coded",
    "to_coded",
    "to_int4",
    "to_int8",
    "unpack_coded",
]
