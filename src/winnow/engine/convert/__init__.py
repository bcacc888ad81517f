"""Convert: pickled checkpoints become safetensors, and safetensors packed weights.   (floor 5 · engine)

    archive.py   the zip file that torch.save writes, mapped and never unpacked
    program.py   the pickle inside, read as data: three names, everything else refused
    pickled.py   the tensors of .bin files, each held against the bytes that are there
    shards.py    safetensors files written tensor by tensor
    rewrite.py   from a directory to a directory, whole or not at all
    parts.py     the memory of a model's weights, each piece by a name
    packed.py    weights as the kernels read them, in a file beside the model

A .bin file is a program that its reader is asked to run. Here it is a table of numbers to be checked.
"""

from winnow.engine.convert.packed import (
    Form,
    Packed,
    find_packed,
    open_weights,
    pack,
    packed_files,
    read_packed,
)
from winnow.engine.convert.pickled import PickledCheckpoint, TorchFile
from winnow.engine.convert.rewrite import Converted, convert

__all__ = [
    "Converted",
    "Form",
    "Packed",
    "PickledCheckpoint",
    "TorchFile",
    "convert",
    "find_packed",
    "open_weights",
    "pack",
    "packed_files",
    "read_packed",
]
