"""Finetunes published as XOR of whole files: which files there are, and what each is made of. Reads names and heads only.

Two kinds were published. What follows comes from their authors' scripts and cards.

**File by file** (`xor_codec.py`: OASST 30B SFT-6, SFT-7, RLHF-2; Pygmalion and Metharme 7B, 13B). Each file of the payload is
XORed with the base's file of the same name; the base is a folder that `convert_llama_weights_to_hf.py` wrote.

- The result has the payload's length: a shorter base is padded with zeros, a longer one is cut.
- Files that only the base has are not in the result (OASST: tokenizer.json). Of files that only the payload has,
  added_tokens.json is copied; the script reports others and leaves them out, and the cards say that "something has gone
  wrong" then: they are refused here.
- The script's option --compress makes gzip data under the same names (several members in one file are joined).
- In its repository the payload is a folder beside the script: that folder is found here, if it is the only one there.
- The base's bytes must be those of torch 1.13.1 and transformers at d04ec99bec8a0b432fc03ed60cea9a1a20ebaf3c. So say the
  cards, which list the MD5 sums (Pygmalion 13B: SHA-256) of the result, and OASST's of the base, too.

**With one key** (`encrypt.py` and `decrypt.py` of pointnetwork/point-alpaca, from which BELLE has its models/decrypt.py, and
TechGPT its utils/decrypt.py). Each file NAME of the finetune is a file NAME.HEX.enc: 32 bytes, the SHA-256 of NAME's content,
then the content XORed with Meta's consolidated.00.pth. HEX is the same SHA-256.

- The key is repeated in blocks of 10 MiB: where its last block is shorter, that block's bytes are repeated up to 10 MiB
  before the key begins again.
- TechGPT's files have no such 32 bytes, and HEX is the SHA-256 of nothing (e3b0c442...): only the card's MD5 can tell there.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from baize_engine.checkpoint.file_io import open_regular, refuse_pointer
from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.manifest import MANIFEST_NAME
from baize_engine.checkpoint.os_errors import reading
from baize_engine.checkpoint.output_folder import PARTIAL
from baize_engine.checkpoint.side_files import LICENCE_WORDS, refuse_link_elsewhere
from baize_engine.errors import CheckpointError, MismatchError
from baize_engine.printable import shown
from baize_engine.recovery.xor.file_types import are_swapped
from baize_engine.recovery.xor.job import XorJob

KEY_NAME = "consolidated.00.pth"
COPIED = "added_tokens.json"
MAX_FILES = 4096
MAX_NAME = 200  # bytes: with the suffix of unfinished files it stays below the 255 that file systems take
WEIGHTS = (".bin", ".pth", ".pt", ".safetensors")
GZIP = b"\x1f\x8b\x08"
DIGEST = 32  # bytes of the SHA-256 with which a file of the second kind begins
_KEYED = re.compile(r"(?P<name>.+)\.(?P<hex>[0-9a-fA-F]{64})\.enc", re.DOTALL)
_OF_NOTHING = hashlib.sha256().hexdigest()
NUL = b"\0"  # an XOR of two config.json begins with it, for both begin with "{"
SWAPPED = "were path_raw and path_payload swapped?"


@dataclass(frozen=True)
class Payload:
    """All files of a result, and the state of their sources when they were listed."""

    folder: Path
    base: Path  # the folder, or the key
    jobs: tuple[XorJob, ...]
    left_out: tuple[str, ...]  # files in the folder that are no part of the payload
    stats: dict[Path, os.stat_result] = field(repr=False)

    @property
    def keyed(self) -> bool:
        return self.jobs[0].keyed

    @property
    def base_files(self) -> list[Path]:
        return sorted({job.base for job in self.jobs if job.base is not None})


class _Heads:
    """Reads the heads of files and notes the files' state. `follow_links`: also of links out of their folder."""

    def __init__(self, follow_links: bool) -> None:
        self.follow_links = follow_links
        self.stats: dict[Path, os.stat_result] = {}

    def read(self, path: Path, any_link: bool = False) -> tuple[int, bytes]:
        """Size and first bytes of a file. Weights may be links to anywhere: they only count if they are weights."""
        name = _KEYED.sub(r"\g<name>", path.name)
        if not (self.follow_links or any_link or name.endswith(WEIGHTS)):
            refuse_link_elsewhere(path)
        with reading(path), os.fdopen(open_regular(path), "rb") as file:
            self.stats[path] = os.fstat(file.fileno())
            head = file.read(64)
        refuse_pointer(path, head)
        return self.stats[path].st_size, head


def read_payload(
    path_raw: str | os.PathLike[str], path_payload: str | os.PathLike[str], follow_links: bool = False
) -> Payload:
    """Lists the payload's files and finds the base's side of each.

    Both paths may be hub ids; `path_raw` may also be the key itself. CheckpointError where a file is not what it should be,
    MismatchError where the base lacks one.
    """
    found = _listed(path_payload)
    folder, files, left_out = found.folder, found.files, found.documents
    heads = _Heads(follow_links)
    if any(path.name.endswith(".enc") for path in files):
        left_out += [path.name for path in files if not path.name.endswith(".enc")]
        files = [path for path in files if path.name.endswith(".enc")]
        base = _key(path_raw)
        jobs = [_keyed(path, base, heads) for path in files]
    else:
        base = folder_of(path_raw, [path.name for path in files])
        _check_base(base, files, folder)
        jobs = [_same_name(path, base / path.name, heads) for path in files]
    seen: dict[str, XorJob] = {}
    for job in jobs:
        _check_name(job)
        if seen.setdefault(job.name, job) is not job:
            raise CheckpointError(f"{seen[job.name].payload} and {job.payload} are both {job.name}: remove one of them")
    return Payload(folder, base, tuple(jobs), tuple(left_out), heads.stats)


def is_payload(folder: Path) -> bool:
    """Whether a folder, or the only folder in it, looks like a payload.

    It has encrypted files by name, or its config.json begins as an XOR or gzip data does. Any other broken config.json, such
    as a web page, says nothing. Files that cannot be read are for others to report.
    """
    try:
        files = {path.name: path for path in _Listing.below(folder).files}
        if any(map(_KEYED.fullmatch, files)):
            return True
        config = files.get("config.json")
        head = _Heads(follow_links=True).read(config)[1] if config else b""
    except CheckpointError:
        return False
    return head.startswith((NUL, GZIP))


@dataclass(frozen=True)
class _Listing:
    """What lies in a folder: files, folders, and names of documents and scripts. Hidden files do not count."""

    folder: Path
    files: list[Path]
    folders: list[Path]
    documents: list[str]

    @classmethod
    def of(cls, folder: Path) -> _Listing:
        listing = cls(folder, [], [], [])
        with reading(folder):
            for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
                if path.is_dir():
                    listing.folders.append(path)
                elif _is_document(path.name):
                    listing.documents.append(path.name)
                else:
                    listing.files.append(path)
        return listing

    @classmethod
    def below(cls, folder: Path) -> _Listing:
        """That of a folder, or of the only folder in it beside documents, as in the repositories."""
        listing = cls.of(folder)
        only = len(listing.folders) == 1 and not listing.files and not listing.folders[0].is_symlink()
        return cls.of(listing.folders[0]) if only else listing


def _listed(path: str | os.PathLike[str]) -> _Listing:
    """The payload's folder. CheckpointError where it holds no payload, or more."""
    folder = folder_of(path, ["*"])
    if folder.is_file():
        swapped = f" ({SWAPPED})" if folder.name.endswith(WEIGHTS) else ""
        raise CheckpointError(f"{folder} is a file, wanted the folder that holds the payload's files{swapped}")
    found = _Listing.below(folder)
    if found.folders:
        raise CheckpointError(
            f"{found.folder} holds the folder {shown(found.folders[0].name)}, wanted files only: give the folder that holds "
            "the payload's files"
        )
    if not found.files:
        raise CheckpointError(f"{found.folder} holds no file of a payload")
    if len(found.files) > MAX_FILES:
        raise CheckpointError(f"{found.folder} holds {len(found.files)} files, wanted at most {MAX_FILES}")
    return found


def _is_document(name: str) -> bool:
    """Whether a file is what repositories hold beside a payload: a card, licence or script."""
    lower = name.lower()
    if lower.endswith(".enc"):
        return False
    return lower.endswith((".md", ".py")) or name == MANIFEST_NAME or any(word in lower for word in LICENCE_WORDS)


def _key(path_raw: str | os.PathLike[str]) -> Path:
    base = folder_of(path_raw, [KEY_NAME])
    with reading(base):
        key = base / KEY_NAME if base.is_dir() else base
        there = key.exists()
    if not there:
        raise MismatchError(
            f"{base} has no {KEY_NAME}: the key of such a payload is that file of Meta's original weights, of the same size as "
            "the finetune"
        )
    return key


def _check_base(base: Path, files: list[Path], folder: Path) -> None:
    """MismatchError unless every file but COPIED has its other side."""
    with reading(base):
        there = {path.name for path in base.iterdir()}
    missing = [path.name for path in files if path.name not in there and path.name != COPIED]
    if missing:
        _refuse_swapped(base, files)
        layout = (
            "it is Meta's original layout, which must be converted first"
            if "params.json" in there
            else f"it has {', '.join(shown(name) for name in sorted(there)[:4]) or 'nothing'}"
        )
        raise MismatchError(
            f"{base} lacks {len(missing)} of the files of {folder}, such as {shown(missing[0])} ({layout}): wanted the base in "
            "the same files as the payload, as convert_llama_weights_to_hf.py wrote them at the time"
        )


def _refuse_swapped(base: Path, files: list[Path]) -> None:
    """MismatchError where the folder given as the base is plainly a payload, and `files` are a model's or hold its key."""
    others, heads = {path.name: path for path in _Listing.below(base).files}, _Heads(follow_links=True)
    for path in files:
        other = others.get(path.name)
        if other is not None and are_swapped(path.name, heads.read(path)[1], heads.read(other)[1]):
            raise _swapped(path, other)
    encrypted = next((other for name, other in others.items() if _KEYED.fullmatch(name)), None)
    if encrypted is not None:
        raise MismatchError(f"{encrypted} is a file of a payload, wanted {KEY_NAME} in {base}: {SWAPPED}")


def _swapped(path: Path, other: Path) -> MismatchError:
    return MismatchError(f"{path} is a complete {path.name}, but {other}, of the base, is not: {SWAPPED}")


def _same_name(path: Path, other: Path, heads: _Heads) -> XorJob:
    size, head = heads.read(path)
    if path.name == COPIED and not other.exists():
        return XorJob(path.name, path, size, 0, None, 0)
    base_size, base_head = heads.read(other)
    if are_swapped(path.name, head, base_head):
        raise _swapped(path, other)
    packed = head.startswith(GZIP)
    return XorJob(path.name, path, size, 0, other, base_size, packed=packed, head=head)


def _keyed(path: Path, key: Path, heads: _Heads) -> XorJob:
    parts = _KEYED.fullmatch(path.name)
    if parts is None:
        raise CheckpointError(f"{path.parent}: {shown(path.name)!r}, wanted a name NAME.<64 hexadecimal digits>.enc")
    name, named = parts["name"], parts["hex"].lower()
    size, head = heads.read(path)
    key_size, _ = heads.read(key, any_link=True)
    if not key_size:
        raise CheckpointError(f"{key} is empty, wanted Meta's {KEY_NAME}")
    if size >= DIGEST and head[:DIGEST].hex() == named:
        return XorJob(name, path, size, DIGEST, key, key_size, keyed=True, sha256=named)
    if named == _OF_NOTHING:  # TechGPT's
        return XorJob(name, path, size, 0, key, key_size, keyed=True)
    raise CheckpointError(
        f"{path} does not begin with the SHA-256 that its name says, but with {head[:DIGEST].hex() or 'nothing'}: "
        "download it again"
    )


def _check_name(job: XorJob) -> None:
    """CheckpointError where a file of the result could not be written: its name comes from an untrusted payload."""
    name = job.name
    if name in (".", "..", MANIFEST_NAME) or name.endswith(PARTIAL) or "/" in name or name.startswith("."):
        raise CheckpointError(f"{job.payload.parent}: a file of the result would be called {shown(name)!r}")
    if len(os.fsencode(name)) > MAX_NAME or not name.isprintable():
        raise CheckpointError(
            f"{job.payload.parent}: a file of the result would be called {shown(name)!r}, wanted at most {MAX_NAME} bytes of "
            "printable characters"
        )
