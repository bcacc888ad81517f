"""Convert: pickled checkpoints, read without unpickling, written as safetensors.   (floor 5 · engine)

    archive.py   the zip file that torch.save writes, mapped and never unpacked
    program.py   the pickle inside, read as data: three names, everything else refused
    pickled.py   the tensors of .bin files, each held against the bytes that are there
    shards.py    safetensors files written tensor by tensor
    rewrite.py   from a directory to a directory, whole or not at all

A .bin file is a program that its reader is asked to run. Here it is a table of numbers to be checked.
"""

from winnow.engine.convert.pickled import PickledCheckpoint, TorchFile
from winnow.engine.convert.rewrite import Converted, convert

__all__ = ["Converted", "PickledCheckpoint", "TorchFile", "convert"]
