"""Choice: which implementation of the kernels this machine gets.   (floor 1 · kernels)"""

import warnings

from winnow.base.errors import UsageError
from winnow.kernels import native
from winnow.kernels.compiled import NativeCpu
from winnow.kernels.cpu import Cpu
from winnow.kernels.portable import ReferenceCpu

MAX_THREADS = 256


def isa_levels() -> tuple[str, ...]:
    """Return the instruction sets that are compiled in and that this processor runs, best last.

    A subset of ("generic", "avx2", "avx512"); empty where the package was installed without a compiler.
    """
    return () if native.module is None else tuple(native.module.isa_levels())


def codes_pay() -> bool:
    """Return whether this machine reads coded bfloat16 faster than plain, which takes AVX-512."""
    return isa_levels()[-1:] == ("avx512",)


def open_cpu(threads: int, isa: str = "best") -> Cpu:
    """Return the kernels on `threads` threads, the caller's among them.

    `isa` is "best", one of `isa_levels()`, or "torch" for the definitions in plain torch. Without the
    compiled kernels "best" is "torch", with one warning. Threads start here, sleep when idle and end with the
    object. After a fork the child computes on its caller's thread alone, with the same bits.
    """
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads is {threads}, expected 1..{MAX_THREADS}.")
    levels = isa_levels()
    if isa == "best" and not levels:
        warnings.warn(
            "Winnow was installed without its compiled kernels and runs on torch, several times slower: "
            "install a C++17 compiler and reinstall.",
            RuntimeWarning,
            stacklevel=2,
        )
    name = (levels[-1] if levels else "torch") if isa == "best" else isa
    if name == "torch":
        return ReferenceCpu(threads)
    if name not in levels:
        known = ", ".join(("best", *levels, "torch"))
        raise UsageError(f"isa is {isa!r}, this machine and build have: {known}.")
    return NativeCpu(threads, name)


def read_bandwidth(cpu: Cpu, n_bytes: int = 1 << 30, seconds: float = 0.5) -> float:
    """Return the bytes per second at which this machine reads memory, all threads of `cpu` reading.

    `n_bytes` must be far larger than the caches for the figure to mean memory: beside a third-level cache of
    32 MB, 256 MB read 8 % faster than what a model streams. The best of the passes that fit into `seconds`.
    """
    if n_bytes < 1 << 20 or seconds <= 0:
        raise UsageError(f"received {n_bytes} bytes, {seconds} s; expected at least 1 MiB and more than 0 s.")
    return cpu.read_bandwidth(n_bytes, seconds)
