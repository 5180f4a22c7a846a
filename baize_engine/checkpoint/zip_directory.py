"""The directory of a zip archive of torch.save, read strictly: bounded memory, one meaning, nothing decompressed.

The standard library's reader takes as much memory as a file demands, hides disk errors, and accepts archives that other
readers understand differently. Names are bytes: they are compared, never decoded, and never used as file names.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

# magic, disks (2), entries (on this disk, in all), bytes, offset, length of the comment
END = struct.Struct("<4s4H2LH")
LOCATOR = struct.Struct("<4sLQL")  # magic, disk, offset of END64, disks; immediately before END
END64 = struct.Struct("<4sQ2H2L4Q")  # magic, bytes after it, versions (2), disks (2), entries (2), bytes, offset
CENTRAL = struct.Struct("<4s2H2H2HL2L3H2H2L")  # see _entries
LOCAL = struct.Struct("<4sH2H2HL2L2H")  # magic, version, flags, method, time, date, crc, sizes (2), name, extra
MAX_DIRECTORY = 8 << 20  # bytes; in a 65B model's largest file it has less than 100 KB
MAX_COMMENT = 0xFFFF
MAGIC = b"PK\x05\x06"  # of END
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF  # in a field: "see the zip64 field"


class ZipError(ValueError):
    """Something is wrong with an archive. The message does not name the file."""


class CompressedError(ZipError):
    """An entry is compressed."""


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of the directory."""

    name: bytes
    flags: int
    method: int
    crc: int  # CRC-32 of the data
    stored: int  # bytes in the archive
    size: int  # bytes when decompressed
    offset: int  # of the local header in the file
    limit: int = 0  # where the next entry or the directory begins

    def locate(self, file: BinaryIO) -> int:
        """The byte offset of the data. ZipError if it is not stored plainly, or not where the directory says."""
        if self.flags & 1:
            raise ZipError("is encrypted, wanted it stored plainly")
        if self.method:
            raise CompressedError("is compressed, wanted it stored plainly")
        header = _record(file, self.offset, LOCAL, b"PK\x03\x04", "")
        name, extra = header[-2:]
        if file.read(name) != self.name or header[2] & 1 or header[3]:
            raise ZipError(f"differs at byte {self.offset} from the directory")
        begin: int = self.offset + LOCAL.size + name + extra
        if self.stored != self.size or begin + self.size > self.limit:
            raise ZipError(f"has {self.size} bytes from byte {begin}, and what follows begins at {self.limit}")
        return begin


def read_directory(file: BinaryIO, size: int) -> dict[bytes, Member]:
    """Read the entries of an archive of `size` bytes, by name. ZipError if it is broken, or could be read in two ways."""
    count, length, offset, end = _find(file, size)
    if length > MAX_DIRECTORY or count * CENTRAL.size > length:
        raise ZipError(f"its directory has {length} bytes for {count} entries, wanted at most {MAX_DIRECTORY}")
    if offset + length != end:
        raise ZipError(f"its directory of {length} bytes at {offset} does not end at {end}")
    file.seek(offset)
    content = file.read(length)
    if len(content) < length:
        raise ZipError("its directory is cut short")
    members: dict[bytes, Member] = {}
    ordered = sorted(_entries(content, count), key=lambda entry: entry.offset)
    for number, entry in enumerate(ordered, 1):
        limit = ordered[number].offset if number < len(ordered) else offset
        if entry.offset + LOCAL.size + len(entry.name) > limit:
            raise ZipError(f"entries overlap at byte {limit}" if limit < offset else "an entry lies in the directory")
        if members.setdefault(entry.name, replace(entry, limit=limit)).offset != entry.offset:
            raise ZipError(f"the entry {entry.name[:80]!r} appears twice")
    return members


def _find(file: BinaryIO, size: int) -> tuple[int, int, int, int]:
    """(entries, bytes, offset, required end) of the directory."""
    begin = max(0, size - END.size - MAX_COMMENT)
    file.seek(begin)
    tail = file.read(size - begin)
    at = tail.rfind(MAGIC, 0, max(0, len(tail) - END.size + len(MAGIC)))
    while at >= 0:
        record = END.unpack_from(tail, at)
        if at + END.size + record[-1] == len(tail):
            break
        at = tail.rfind(MAGIC, 0, at + len(MAGIC) - 1)
    if at < 0:
        raise ZipError("it has no end of a zip archive")
    _, disk, first_disk, here, count, length, offset, _ = record
    end = begin + at
    locator = tail[at - LOCATOR.size : at] if at >= LOCATOR.size else b""
    if locator.startswith(b"PK\x06\x07"):
        _, locator_disk, at, disks = LOCATOR.unpack(locator)
        narrow, full = (here, count, length, offset), (FULL16, FULL16, FULL32, FULL32)
        count, length, offset, end = _find64(file, locator_disk, at, disks, end - LOCATOR.size)
        here = count
        for old, new, unknown in zip(narrow, (here, count, length, offset), full, strict=True):
            if old not in (new, unknown):
                raise ZipError(f"its two ends disagree: {old} and {new}")
    elif FULL16 in (here, count) or FULL32 in (length, offset):
        raise ZipError("it lacks the zip64 end that it refers to")
    if disk or first_disk or here != count:
        raise ZipError("it spans several disks")
    return count, length, offset, end


def _find64(file: BinaryIO, disk: int, at: int, disks: int, limit: int) -> tuple[int, int, int, int]:
    """As `_find`, from the zip64 end at byte `at`, which must end at `limit`."""
    if disk or disks > 1 or at + END64.size > limit:
        raise ZipError(f"its zip64 end cannot begin at byte {at}")
    record = _record(file, at, END64, b"PK\x06\x06", "its zip64 end ")
    _, rest, _, _, disk, first_disk, here, count, length, offset = record
    if disk or first_disk or here != count or at + 12 + rest != limit:
        raise ZipError("its zip64 end is not whole")
    return count, length, offset, at


def _record(file: BinaryIO, at: int, form: struct.Struct, magic: bytes, what: str) -> tuple[Any, ...]:
    """The fields of the record at byte `at`. ZipError says that `what` does not begin there."""
    file.seek(at)
    content = file.read(form.size)
    if len(content) < form.size or not content.startswith(magic):
        raise ZipError(f"{what}does not begin at byte {at}")
    return form.unpack(content)


def _entries(content: bytes, count: int) -> list[Member]:
    """The `count` entries of the directory `content`, in its order."""
    found, at = [], 0
    for number in range(count):
        if at + CENTRAL.size > len(content) or content[at : at + 4] != b"PK\x01\x02":
            raise ZipError(f"its directory holds {number} of {count} entries")
        fields = CENTRAL.unpack_from(content, at)
        flags, method, crc, stored, size, offset = fields[3], fields[4], *fields[7:10], fields[16]
        name, extra, comment = fields[10:13]
        at += CENTRAL.size
        end = at + name + extra + comment
        if end > len(content):
            raise ZipError("an entry extends beyond its directory")
        size, stored, offset = _wide(content[at + name : at + name + extra], size, stored, offset)
        found.append(Member(content[at : at + name], flags, method, crc, stored, size, offset))
        at = end
    if at != len(content):
        raise ZipError(f"its directory of {len(content)} bytes ends at byte {at} of them")
    return found


def _wide(extra: bytes, *numbers: int) -> list[int]:
    """`numbers`, with those too large for 32 bits taken from the zip64 field, which holds only these, in their order."""
    found = list(numbers)
    at = 0
    while FULL32 in found and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            for number, value in enumerate(numbers):
                if value == FULL32:
                    if length < 8 or at + 12 > len(extra):
                        raise ZipError("an entry's zip64 field is too short")
                    (found[number],) = struct.unpack_from("<Q", extra, at + 4)
                    at, length = at + 8, length - 8
            return found
        at += 4 + length
    if FULL32 in found:
        raise ZipError("an entry lacks its zip64 field")
    return found
