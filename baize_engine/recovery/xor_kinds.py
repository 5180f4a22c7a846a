"""What a file of a model looks like, by its name: the wrong base's bytes make something else."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import BinaryIO

from baize_engine.checkpoint.file_io import open_regular
from baize_engine.checkpoint.os_errors import reading
from baize_engine.checkpoint.zip_directory import Member, ZipError, read_directory
from baize_engine.errors import MismatchError
from baize_engine.interrupts import Check
from baize_engine.printable import shown
from baize_engine.recovery.xor_beginnings import TORCH, why_not
from baize_engine.recovery.xor_payload import Job

BLOCK = 1 << 20  # bytes read at a time
MAX_JSON = 8 << 20  # bytes of JSON that are parsed: as objects they are 20 times as much

WRONG_BASE = (
    "the base's bytes are not those that the payload was made with. Payloads of OASST and Pygmalion need, byte for byte, the "
    "files that transformers at commit d04ec99bec8a0b432fc03ed60cea9a1a20ebaf3c with torch 1.13.1 wrote from Meta's weights "
    "(convert_llama_weights_to_hf.py): compare the base with the MD5 in the model's card, which --expect_md5 does"
)
WRONG_KEY = (
    "the key is not the file that the payload was made with, which is Meta's consolidated.00.pth of the same size as the "
    "finetune (7B, 13B)"
)


def check_head(job: Job, head: bytes) -> None:
    """MismatchError where a result that begins with `head`, all of it or HEAD bytes, cannot be what its name says."""
    if wrong := why_not(job.name, head):
        if job.beginning and not why_not(job.name, job.beginning):
            raise MismatchError(
                f"{job.payload} is a whole {job.name} and no XOR file: wanted the published XOR files (a diff that is to be "
                "added is for baize recover)"
            )
        raise mismatch(job, f"begins with {shown(repr(head[:12])[1:])}, {wrong}")


def check_whole(job: Job, path: Path, by_crc: bool, check: Check) -> bool:
    """MismatchError where the whole result in `path` is not what its name says. True if CRC-32 of all its bytes told.

    torch.save notes a CRC-32 of each tensor's bytes, which tells a wrong base where no sum was published: `by_crc`. `check`
    is called before each block that this reads.
    """
    with reading(path), os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if job.name.endswith(".json") and size <= MAX_JSON:
            try:
                json.loads(file.read(size))
            except (ValueError, RecursionError) as error:
                raise mismatch(job, f"is not JSON ({shown(str(error))})") from None
        elif job.name.endswith(TORCH):
            try:
                members = read_directory(file, size).values()
                return by_crc and all([_fits(member, file, check) for member in members])
            except ZipError as error:
                raise mismatch(job, f"is not a whole archive of torch.save ({error})") from None
    return False


def _fits(member: Member, file: BinaryIO, check: Check) -> bool:
    """ZipError where a member has not the CRC-32 that the archive says; False where it says none."""
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


def mismatch(job: Job, problem: str) -> MismatchError:
    """What to tell of a result that is wrong."""
    if job.base is None:
        return MismatchError(f"{job.payload} {problem}: the payload is damaged")
    return MismatchError(
        f"{job.payload} with {job.base} makes a {job.name} that {problem}: {WRONG_KEY if job.keyed else WRONG_BASE}"
    )
