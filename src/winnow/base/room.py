"""Room: memory and disk that are free, asked before they are used.   (floor 0 · base)

Linux kills what takes more memory than there is, without a word. So what is needed is estimated first and
held against what is free: of the machine, and of the control group that a container puts around a process.
"""

import ctypes
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from winnow.base.errors import ResourceError

ROOT = Path("/")  # where proc and sys are found
# A group without a limit reports a number near 2**63, or "max".
NO_LIMIT = 2**60
GROUPS = "sys/fs/cgroup"


def free_memory_bytes() -> int | None:
    """Return the memory that this process may still take, None where the system does not say.

    The least of what the machine has available and what each control group above the process leaves; file
    pages that a group can drop count as free.
    """
    return min([*_machine(ROOT), *_groups(ROOT)], default=None)


def check_memory(needed_bytes: int, name: str) -> None:
    """Raise ResourceError when `name` needs more memory than is free."""
    free = free_memory_bytes()
    if free is not None and needed_bytes > free:
        raise ResourceError(
            f"{name} needs {quantity(needed_bytes)} of memory, {quantity(free)} are free; "
            "choose a smaller model, or --dtype bf16."
        )


def check_disk(needed_bytes: int, target: Path) -> None:
    """Raise ResourceError when the disk that will hold `target` has less room than is needed."""
    place = target.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed_bytes > free:
        raise ResourceError(
            f"{target} needs {quantity(needed_bytes)} of disk, {quantity(free)} are free there; "
            "make room, or name another place."
        )


def return_freed_memory() -> None:
    """Give freed memory that the C library still keeps back to the system, where that library is glibc.

    Costs milliseconds, and the pages' return where they are needed again. Elsewhere nothing happens.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def quantity(n_bytes: float | int) -> str:
    """Return a number of bytes with three figures and a unit: 950 B, 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def _machine(root: Path) -> Iterator[int]:
    found = _table(root / "proc/meminfo", ":").get("MemAvailable")
    if found is not None:
        yield 1024 * found


def _groups(root: Path) -> Iterator[int]:
    """Yield what each group from the process's own up to the root leaves, of version 2 and of version 1."""
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers == "":
            top, limit, used, droppable = root / GROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, used = root / GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            droppable = "total_inactive_file"
        else:
            continue
        place = top / name.lstrip("/")
        for group in (place, *place.parents):
            if not group.is_relative_to(top):
                break
            most, taken = _number(group / limit), _number(group / used)
            if most is not None and taken is not None and most < NO_LIMIT:
                yield max(0, most - taken + _table(group / "memory.stat", " ").get(droppable, 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _table(path: Path, separator: str) -> dict[str, int]:
    """Return the numbers of a file with one name and number per line, units left out."""
    table: dict[str, int] = {}
    for line in _lines(path):
        name, _, value = line.partition(separator)
        words = value.split()
        if words and words[0].isdigit():
            table[name] = int(words[0])
    return table
