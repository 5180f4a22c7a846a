"""What a file of a model looks like, by its name: the wrong base's bytes make something else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from baize_engine.checkpoint.file_io import open_regular
from baize_engine.checkpoint.os_errors import reading
from baize_engine.checkpoint.shown import shown
from baize_engine.checkpoint.zip_directory import ZipError, read_directory
from baize_engine.errors import MismatchError
from baize_engine.recovery.xor_payload import Job

HEAD = 4096  # bytes that are looked at before anything is written
MAX_JSON = 8 << 20  # bytes of JSON that are parsed: as objects they are 20 times as much
ZIP, OLD_TORCH = b"PK\x03\x04", b"\x80\x02"  # what torch.save wrote since 1.6, and before

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
    wrong = next((look(head) for suffix, look in _HEADS if job.name.endswith(suffix)), None)
    if wrong:
        raise mismatch(job, f"begins with {shown(repr(head[:12])[2:-1]) or 'nothing'}, {wrong}")


def check_whole(job: Job, path: Path) -> None:
    """MismatchError where the whole result in `path` is not what its name says."""
    with reading(path), os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if job.name.endswith(".json") and size <= MAX_JSON:
            try:
                json.loads(file.read(size))
            except (ValueError, RecursionError) as error:
                raise mismatch(job, f"is not JSON ({shown(str(error))})") from None
        elif job.name.endswith((".bin", ".pth", ".pt")) and file.read(len(ZIP)) == ZIP:
            try:
                read_directory(file, size)
            except ZipError as error:
                raise mismatch(job, f"is not a whole archive of torch.save ({error})") from None


def mismatch(job: Job, problem: str) -> MismatchError:
    """What to tell of a result that is wrong."""
    if job.base is None:
        return MismatchError(f"{job.payload} {problem}: the payload is damaged")
    return MismatchError(
        f"{job.payload} with {job.base} makes a {job.name} that {problem}: {WRONG_KEY if job.keyed else WRONG_BASE}"
    )


def _json(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    control = any(byte < 32 and byte not in b"\t\r\n" for byte in head)
    return "" if text[:1] in (b"{", b"[") and not control else "which is not JSON"


def _torch(head: bytes) -> str:
    return "" if head.startswith((ZIP, OLD_TORCH)) else "wanted 'PK', as torch.save writes it"


def _safetensors(head: bytes) -> str:
    length = int.from_bytes(head[:8], "little")
    return "" if head[8:9] == b"{" and 2 <= length < 1 << 27 else "which is no header of safetensors"


def _sentencepiece(head: bytes) -> str:
    return "" if head.startswith(b"\n") else "which is no sentencepiece model"


_HEADS: tuple[tuple[str, Callable[[bytes], str]], ...] = (
    (".json", _json),
    (".bin", _torch),
    (".pth", _torch),
    (".pt", _torch),
    (".safetensors", _safetensors),
    ("tokenizer.model", _sentencepiece),
)
