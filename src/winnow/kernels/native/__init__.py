"""The compiled kernels, or the knowledge that they are absent.   (floor 1 · kernels)

Compiled by CMake from these sources and the `cpu.cpp` of each kernel, the latter once per instruction set.

    pool.hpp pool.cpp           the thread pool
    kernels.hpp                 what a level offers: a table of functions
    simd/                       one instruction set per compilation: four, eight, sixteen floats; int4, coded
    rows.hpp                    eight rows at once: the loops all kernels stand on
    table.cpp                   the table of one level
    features.hpp features.cpp   which levels this processor runs
    memory.hpp memory.cpp       scratch memory, the read bandwidth
    arrays.hpp calls.hpp        arrays from Python; the kernels as it calls them, at once or recorded
    bindings.cpp                the Python module `_native`
"""

import importlib
import importlib.util
from types import ModuleType

__all__ = ["module"]

_NAME = "winnow.kernels.native._native"


def _load() -> ModuleType | None:
    # find_spec first: a module that exists and does not load is a broken build and has to say so.
    return importlib.import_module(_NAME) if importlib.util.find_spec(_NAME) else None


module = _load()
"""The extension module, or None where the package was installed without a compiler."""
