"""winnow doctor: what this machine offers Winnow.   (floor 8 · cli)"""

import argparse
import os

import torch

from winnow.base.room import free_memory_bytes
from winnow.base.timing import machine
from winnow.cli.show import quantity, show_json, show_pairs
from winnow.cli.version import version
from winnow.kernels import isa_levels, open_cpu, read_bandwidth


def run(arguments: argparse.Namespace) -> int:
    """Print processor, kernels, threads, read bandwidth and free memory; measures for half a second."""
    threads = arguments.threads or len(os.sched_getaffinity(0))
    cpu = open_cpu(threads)
    levels = isa_levels()
    found: dict[str, object] = {
        "winnow": version(),
        **machine(threads),
        "isa": cpu.isa,
        "isa_levels": list(levels),
        "has_compiled_kernels": bool(levels),
        "read_gb_per_s": read_bandwidth(cpu) / 1e9,
        "memory_free_bytes": free_memory_bytes(),
        "torch": torch.__version__,
    }
    if arguments.json:
        show_json(found)
        return 0
    show_pairs("what Winnow finds here", [(key, _cell(key, value)) for key, value in found.items()])
    if not levels:
        print("No compiled kernels: install a C++17 compiler and reinstall; torch is several times slower.")
    return 0


def _cell(key: str, value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(str, value)) or "none"
        case float():
            return f"{value:.1f}"
        case int() if key.endswith("_bytes"):
            return quantity(value)
        case _:
            return str(value)
