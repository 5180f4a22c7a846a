"""Lists of MD5 or SHA-256 sums, as `md5sum`, `sha256sum` and `rhash` print them and models' cards show them.

A line is `HEX  NAME`, BSD's and openssl's `MD5 (NAME) = HEX`, or a table's `| NAME | HEX |` in either order.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from baize_engine.checkpoint.file_io import open_regular
from baize_engine.checkpoint.os_errors import reading
from baize_engine.errors import CheckpointError, MismatchError
from baize_engine.printable import shown

MAX_BYTES = 1 << 20
_HEX = re.compile(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{32}")
_LINE = re.compile(rf"\s*(?P<hex>{_HEX.pattern})\s+\*?(?P<name>\S(?:.*\S)?)\s*")
_BSD = re.compile(rf"\s*(?:MD5|SHA-?256|SHA2-256)\s?\((?P<name>.+)\)\s?=\s?(?P<hex>{_HEX.pattern})\s*")


@dataclass(frozen=True)
class Sums:
    """The sums that a text lists for each file name, in their order.

    A card lists the base first and the result last, with the same names: where a name is listed twice or more, the last sum is
    the result's and the one before it the base's. A name that is listed once is the result's, or that of the base, key or
    payload if no file of the result has it.
    """

    path: Path
    found: dict[str, list[str]]

    def of_result(self, name: str) -> str | None:
        return self.found[name][-1] if name in self.found else None

    def of_input(self, name: str, results: set[str]) -> str | None:
        """The sum of a file that is read, where the result has files called `results`."""
        given = self.found.get(name, [])
        if name in results:
            return given[-2] if len(given) > 1 else None
        return given[-1] if given else None

    def check(self, path: Path, wanted: str, digests: dict[str, str], why: str) -> None:
        """MismatchError, ending with `why`, unless the file's digest of the same kind is `wanted`."""
        kind = algorithm(wanted)
        if digests[kind] != wanted:
            raise MismatchError(f"{path}: {LABELS[kind]} is {digests[kind]}, {self.path} says {wanted}: {why}")


LABELS = {"md5": "MD5", "sha256": "SHA-256"}


def algorithm(digest: str) -> str:
    """hashlib's name of the algorithm that makes hexadecimal digests of this length."""
    return "md5" if len(digest) == 32 else "sha256"


def read_sums(path: str | os.PathLike[str]) -> Sums:
    """The sums in a text; other lines are skipped. CheckpointError where there are none, or the text is too long."""
    with reading(path), os.fdopen(open_regular(path), "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{path}: more than {MAX_BYTES} bytes, wanted a list of md5sum's")
    found: dict[str, list[str]] = {}
    for line in content.decode("utf-8", "replace").splitlines():
        if pair := _pair(line):
            digest, name = pair
            found.setdefault(name.rsplit("/", 1)[-1], []).append(digest.lower())
    if not found:
        first = content[:40].decode("utf-8", "replace")
        raise CheckpointError(
            f"{path} holds no line of md5sum's or sha256sum's, such as 'MD5  NAME', 'MD5 (NAME) = MD5' or '| NAME | MD5 |' "
            f"(it begins with {shown(first)!r})"
        )
    return Sums(Path(path), found)


def _pair(line: str) -> tuple[str, str] | None:
    """(digest, name) of a line in one of the forms, else None."""
    if parts := _LINE.fullmatch(line) or _BSD.fullmatch(line):
        return parts["hex"], parts["name"]
    cells = [cell.strip().strip("`").strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
    if len(cells) != 2 or not all(cells):
        return None
    first, second = (cell.replace("\\_", "_") for cell in cells)  # as Markdown may spell it
    if _HEX.fullmatch(first):
        return first, second
    return (second, first) if _HEX.fullmatch(second) else None
