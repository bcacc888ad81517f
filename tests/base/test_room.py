"""Room: the least of what machine and control groups leave, and disks asked beforehand."""

import platform
from pathlib import Path

import pytest

from winnow.base import room
from winnow.base.errors import ResourceError
from winnow.base.room import check_disk, check_memory, free_memory_bytes, quantity, return_freed_memory

MIB = 2**20


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 9 MiB free and no control groups."""
    monkeypatch.setattr(room, "ROOT", tmp_path)
    write(tmp_path / "proc/meminfo", f"MemTotal: 99 kB\nMemAvailable:   {9 * 1024} kB\n")
    return tmp_path


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def limit(group: Path, most: int | str, used: int, droppable: int, version: int = 2) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    write(group / names[0], f"{most}\n")
    write(group / names[1], f"{used}\n")
    write(group / "memory.stat", f"anon 7\n{names[2]} {droppable}\n")


def test_without_groups_the_machine_decides(machine: Path) -> None:
    assert free_memory_bytes() == 9 * MIB


def test_a_system_that_says_nothing_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ROOT", tmp_path)
    assert free_memory_bytes() is None
    check_memory(2**80, "model")
    write(tmp_path / "proc/meminfo", "MemAvailable: unknown\n")
    assert free_memory_bytes() is None


@pytest.mark.parametrize(("place", "free"), [("a/b", 3), ("a", 3), ("", 3), ("a/b/c", 9), ("b", 9)])
def test_every_group_above_the_process_counts_and_no_other(machine: Path, place: str, free: int) -> None:
    write(machine / "proc/self/cgroup", "0::/a/b\n")
    limit(machine / "sys/fs/cgroup" / place, 8 * MIB, 7 * MIB, 2 * MIB)
    assert free_memory_bytes() == free * MIB


def test_a_group_of_version_one_counts(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "9:cpu,cpuacct:/x\n4:hugetlb,memory:/a\n")
    limit(machine / "sys/fs/cgroup/memory/a", 8 * MIB, 7 * MIB, MIB, version=1)
    assert free_memory_bytes() == 2 * MIB


@pytest.mark.parametrize("most", ["max", 2**63 - 4096, "", "many"])
def test_a_group_without_a_limit_does_not_count(machine: Path, most: int | str) -> None:
    write(machine / "proc/self/cgroup", "0::/\n")
    limit(machine / "sys/fs/cgroup", most, MIB, 0)
    assert free_memory_bytes() == 9 * MIB


def test_a_group_that_is_over_its_limit_leaves_nothing(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "0::/\n")
    limit(machine / "sys/fs/cgroup", MIB, 2 * MIB, 0)
    assert free_memory_bytes() == 0
    with pytest.raises(ResourceError, match=r"model needs 1 B of memory, 0 B are free"):
        check_memory(1, "model")


def test_what_fits_passes(machine: Path) -> None:
    check_memory(9 * MIB, "model")
    with pytest.raises(ResourceError, match=r"needs 9\.44 MB of memory, 9\.44 MB are free; choose"):
        check_memory(9 * MIB + 1, "model")


def test_a_disk_is_asked_though_the_place_is_not_there_yet(tmp_path: Path) -> None:
    check_disk(1, tmp_path / "a/b/c")
    with pytest.raises(ResourceError, match=r"a/b/c needs 1\.21e\+12 TB of disk, .* are free there"):
        check_disk(2**80, tmp_path / "a/b/c")


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345_678, "12.3 MB"), (5e12, "5 TB")]
)
def test_quantities_have_three_figures_and_a_unit(n_bytes: float | int, text: str) -> None:
    assert quantity(n_bytes) == text


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_memory_between_what_stays_goes_back():
    # blocks of the heap, not mappings of their own, which go back when they are freed
    blocks = [bytearray(64 << 10) for _ in range(1600)]
    kept = blocks[::20]
    del blocks
    before = resident_bytes()
    return_freed_memory()
    assert before - resident_bytes() > 50e6
    assert all(not any(block) for block in kept)


def resident_bytes() -> int:
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])
