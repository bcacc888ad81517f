"""Archive: the zip file that torch.save writes, mapped and never unpacked.   (floor 5 · engine)

torch stores its entries without compression, so an entry is a slice of the file. Anything else that a zip
file may hold (compression, encryption, several disks, overlapping entries) is refused: no entry is larger
than its bytes on disk. Check sums are not compared, as torch may leave them out and safetensors has none.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import final

from winnow.base.errors import ModelError
from winnow.engine.config import brief, refuse_lfs_pointer

ZIP_MARK = b"PK\x03\x04"
TAR_MARK, TAR_MARK_AT = b"ustar", 257
PICKLE_MARK = b"\x80"
GGUF_MARK = b"GGUF"
MOST_ENTRIES = 100_000  # of one file: a second of reading
LONGEST_COMMENT = 2**16
AFRESH = "Save it anew with torch 1.6 or later where you trust it, or look for the model's safetensors."

# The records of a zip file, without the fields at their end whose length they give.
END = struct.Struct("<4s4H2LH")  # mark, disks, entries here, entries, directory bytes and place, comment
END64 = struct.Struct(
    "<4sQ2H2L4Q"
)  # mark, own bytes, versions, disks, entries twice, directory bytes and place
LOCATOR64 = struct.Struct("<4sLQL")  # mark, disk, place of END64, disks
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
END_MARK, END64_MARK, LOCATOR64_MARK, ENTRY_MARK = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
ENCRYPTED = 0x1 | 0x40 | 0x2000
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF  # the value stands in a zip64 field


@final
class Archive:
    """The entries of one file, each a read-only view of the mapped file.

    Cost: the directory is read once; views take no memory. Raises ModelError, with the way round, for a
    file of another kind and for every entry that is not stored as it is.
    """

    def __init__(self, path: Path) -> None:
        """Map `path` and read its directory."""
        self.path = path
        self._map = _mapped(path)
        self._places = dict(self._stored(self._entries()))

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return len(self._map)

    def names(self) -> tuple[str, ...]:
        """Names of all entries, in the order of their bytes."""
        return tuple(self._places)

    def size(self, name: str) -> int:
        """Bytes of the entry called `name`; raises ModelError when there is none."""
        return self._place(name)[1]

    def view(self, name: str) -> memoryview:
        """The bytes of the entry called `name`; raises ModelError when there is none."""
        place, size = self._place(name)
        return memoryview(self._map)[place : place + size]

    def broken(self, what: str) -> ModelError:
        """Return the error that says `what` is wrong with this file."""
        return ModelError(f"{self.path} is broken ({what}). Download it again.")

    def _place(self, name: str) -> tuple[int, int]:
        if name not in self._places:
            raise self.broken(f"it holds no {brief(name)}")
        return self._places[name]

    def _read(self, layout: struct.Struct, place: int, mark: bytes, what: str) -> tuple:
        """Return the fields of the record at `place` that begins with `mark`."""
        if not 0 <= place <= len(self._map) - layout.size:
            raise self.broken(f"{what} lies outside the file")
        fields = layout.unpack_from(self._map, place)
        if fields[0] != mark:
            raise self.broken(f"{what} is not where the file says")
        return fields

    def _directory(self) -> tuple[int, int, int]:
        """Return number of entries, place and bytes of the directory."""
        at = self._map.rfind(END_MARK, max(0, len(self._map) - LONGEST_COMMENT - END.size))
        if at < 0:
            raise self.broken("it has no end record, as after a download cut short")
        _, disk, first_disk, _, n_entries, size, place, _ = self._read(END, at, END_MARK, "the end record")
        locator = at - LOCATOR64.size
        if locator >= 0 and self._map[locator : locator + 4] == LOCATOR64_MARK:
            _, disk, at, _ = self._read(LOCATOR64, locator, LOCATOR64_MARK, "the zip64 locator")
            end64 = self._read(END64, at, END64_MARK, "the zip64 end record")
            _, _, _, _, _, first_disk, _, n_entries, size, place = end64
        if disk or first_disk:
            raise self.broken("it is one part of several")
        if n_entries > MOST_ENTRIES:
            raise self.broken(f"it lists {n_entries} entries, expected at most {MOST_ENTRIES}")
        if place + size > len(self._map):
            raise self.broken("its directory lies outside the file")
        return n_entries, place, size

    def _entries(self) -> Iterator[tuple[str, int, int]]:
        """Yield name, place of the local header and bytes of every entry."""
        n_entries, at, size = self._directory()
        end = at + size
        for _ in range(n_entries):
            fields = self._read(ENTRY, at, ENTRY_MARK, "a directory entry")
            flags, method, packed, unpacked = fields[3], fields[4], fields[8], fields[9]
            name_bytes, extra_bytes, comment_bytes, place = fields[10], fields[11], fields[12], fields[16]
            name_at = at + ENTRY.size
            extra_at = name_at + name_bytes
            at = extra_at + extra_bytes + comment_bytes
            if at > end:
                raise self.broken("a directory entry runs past the directory")
            name = self._name(name_at, name_bytes)
            if flags & ENCRYPTED:
                raise ModelError(
                    f"{self.path}: {brief(name)} is encrypted, torch.save never does that. {AFRESH}"
                )
            if method != 0:
                raise ModelError(
                    f"{self.path}: {brief(name)} is compressed, torch.save stores its data as it is. {AFRESH}"
                )
            extra = self._map[extra_at : extra_at + extra_bytes]
            unpacked, packed, place = self._long_fields((unpacked, packed, place), extra)
            if packed != unpacked:
                raise self.broken(f"{brief(name)} has {packed} bytes and claims {unpacked}")
            yield name, place, unpacked

    def _name(self, place: int, size: int) -> str:
        try:
            return self._map[place : place + size].decode()
        except UnicodeDecodeError as error:
            raise self.broken("the name of an entry is not UTF-8") from error

    def _long_fields(self, fields: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
        """Return `fields`, each that is full replaced by the next number of the zip64 field of `extra`."""
        if FULL32 not in fields:
            return fields
        numbers = iter(())
        at = 0
        while at + 4 <= len(extra):
            kind, size = struct.unpack_from("<2H", extra, at)
            if kind == 1:
                content = extra[at + 4 : at + 4 + size]
                numbers = iter(struct.unpack(f"<{len(content) // 8}Q", content[: len(content) // 8 * 8]))
                break
            at += 4 + size
        try:
            first, second, third = (next(numbers) if field == FULL32 else field for field in fields)
        except (StopIteration, RuntimeError) as error:
            raise self.broken("an entry lacks its zip64 sizes") from error
        return first, second, third

    def _stored(self, entries: Iterator[tuple[str, int, int]]) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield name, place and bytes of every entry's data, in the order of the file."""
        names: set[str] = set()
        end = 0
        for name, at, size in sorted(entries, key=lambda entry: entry[1]):
            if name in names:
                raise self.broken(f"it holds {brief(name)} twice")
            names.add(name)
            fields = self._read(LOCAL, at, ZIP_MARK, f"the entry {brief(name)}")
            name_at = at + LOCAL.size
            place = name_at + fields[9] + fields[10]
            if at < end or place + size > len(self._map):
                where = "overlaps another" if at < end else "runs past the end, as after a download cut short"
                raise self.broken(f"the entry {brief(name)} {where}")
            if self._map[name_at : name_at + fields[9]] != name.encode():
                raise self.broken(f"the entry {brief(name)} has another name in the directory")
            end = place + size
            yield name, (place, size)


def _mapped(path: Path) -> mmap.mmap:
    """Map a file that begins as torch's zip files do; say what else it is."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
            refuse_lfs_pointer(path, head)
            _refuse_foreign(path, head)
            # A private copy of what nobody writes: torch warns about memory that is read-only.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is empty"
        raise ModelError(f"{path} cannot be read ({reason}). Download it again.") from error


def _refuse_foreign(path: Path, head: bytes) -> None:
    if head.startswith(ZIP_MARK):
        return
    if head[TAR_MARK_AT : TAR_MARK_AT + len(TAR_MARK)] == TAR_MARK:
        raise ModelError(f"{path} is a tar file of torch 0.1, which holds several pickles. {AFRESH}")
    if head.startswith(PICKLE_MARK):
        raise ModelError(f"{path} is one raw pickle, the format before torch 1.6. {AFRESH}")
    if head.startswith(GGUF_MARK):
        raise ModelError(f"{path} is GGUF, a format of other engines. Use the model's original safetensors.")
    if not head:
        raise ModelError(f"{path} is empty, expected the zip file that torch.save writes. Download it again.")
    raise ModelError(
        f"{path} begins with {brief(head[:8])}, expected the zip file that torch.save writes. "
        "Download it again."
    )
