"""What files of a model look like, by their names. XOR files, and results of a wrong base, look different."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from baize_engine.checkpoint.file_io import open_regular
from baize_engine.checkpoint.os_errors import reading
from baize_engine.checkpoint.zip_directory import Member, ZipError, read_directory
from baize_engine.errors import MismatchError
from baize_engine.interrupts import Check
from baize_engine.printable import shown
from baize_engine.recovery.xor.job import XorJob

HEAD = 4096  # bytes that are looked at before anything is written
# what torch.save has written since 1.6; a base in the older form gives a result that begins like it, which is refused
ZIP = b"PK\x03\x04"
TORCH = (".bin", ".pth", ".pt")
BLOCK = 1 << 20  # bytes read at a time
MAX_JSON = 8 << 20  # bytes of JSON that are parsed: as objects they are 20 times as much


def why_not(name: str, head: bytes) -> str:
    """Why a file that begins with `head` cannot be what its name says; "" where it can."""
    return next((look(head) for suffix, look in _HEADS if name.endswith(suffix)), "")


def are_swapped(name: str, payload: bytes, base: bytes) -> bool:
    """Whether the payload's file begins like a model's and the base's, which is not empty, does not.

    Where both are what they should be, the payload begins with zeros, or like gzip data.
    """
    return bool(payload and base) and not why_not(name, payload) and why_not(name, base) != ""


def _json(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if text[:1] not in (b"{", b"["):
        return "which is not JSON"
    control = next((at for at, byte in enumerate(head) if byte < 32 and byte not in b"\t\r\n"), None)
    return "" if control is None else f"and its byte {control} is {head[control]}, which is not JSON"


def _torch(head: bytes) -> str:
    return "" if head.startswith(ZIP) else "wanted 'PK', as torch.save writes it"


def _safetensors(head: bytes) -> str:
    length = int.from_bytes(head[:8], "little")
    return "" if head[8:9] == b"{" and 2 <= length < 1 << 27 else "which is no header of safetensors"


def _sentencepiece(head: bytes) -> str:
    return "" if head.startswith(b"\n") else "which is no sentencepiece model"


_HEADS: tuple[tuple[str, Callable[[bytes], str]], ...] = (
    (".json", _json),
    *((suffix, _torch) for suffix in TORCH),
    (".safetensors", _safetensors),
    ("tokenizer.model", _sentencepiece),
)


def check_head(job: XorJob, head: bytes) -> None:
    """MismatchError where a result that begins with `head`, its first HEAD bytes, cannot be what its name says."""
    if wrong := why_not(job.name, head):
        if job.head and not why_not(job.name, job.head):
            raise MismatchError(
                f"{job.payload} is a complete {job.name}, not an XOR file: wanted the published XOR files (a weight diff is "
                "for baize recover)"
            )
        raise job.mismatch(f"begins with {shown(repr(head[:12])[1:])}, {wrong}")


def check_whole(job: XorJob, path: Path, by_crc: bool, check: Check) -> bool:
    """MismatchError where the whole result in `path` is not what its name says. True if a CRC-32 of all its bytes was right.

    torch.save notes a CRC-32 of each tensor's bytes, which reveals a wrong base where no sum was published; `by_crc` compares
    them. `check` is called before each block that is read for that.
    """
    with reading(path), os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if job.name.endswith(".json") and size <= MAX_JSON:
            try:
                json.loads(file.read(size))
            except (ValueError, RecursionError) as error:
                raise job.mismatch(f"is not JSON ({shown(str(error))})") from None
        elif job.name.endswith(TORCH):
            try:
                members = read_directory(file, size).values()
                return by_crc and all([_fits(member, file, check) for member in members])
            except ZipError as error:
                raise job.mismatch(f"is not a whole archive of torch.save ({error})") from None
    return False


def _fits(member: Member, file: BinaryIO, check: Check) -> bool:
    """ZipError where a member does not have the CRC-32 that the archive states; False where it states none."""
    if not member.crc and member.size:  # torch.serialization.set_crc32_options(False)
        return False
    file.seek(member.locate(file))
    buffer, left, found = memoryview(bytearray(BLOCK)), member.size, 0
    while left:
        check()
        count = file.readinto(buffer[: min(BLOCK, left)])  # type: ignore[attr-defined]
        if not count:
            raise ZipError(f"ends {left} bytes too early")
        found = zlib.crc32(buffer[:count], found)
        left -= count
    if found != member.crc:
        raise ZipError(
            f"the CRC-32 of {shown(member.name.decode('utf-8', 'replace'))} is {found:08x}, not {member.crc:08x}"
        )
    return True
