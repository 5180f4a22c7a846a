"""Finding and reading the data of tasks, as downloaded. Every failure is a DataError that names the file, and the line."""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from baize_engine.errors import DataError
from baize_engine.printable import kind, shown

MAX_BYTES = 1 << 30  # of one file, decompressed: TydiQA-GoldP's training questions, the largest, have 60 MB


@dataclass(frozen=True)
class Part:
    """A file of a folder or of an archive. where: its name in messages."""

    where: str
    text: str


def locate(data: Path, names: tuple[str, ...], source: str) -> Path:
    """The first of `names` that is in the folder `data`; names may have folders. source: where to download it."""
    for name in names:
        if (data / name).exists():
            return data / name
    wanted = " or ".join(names)
    raise DataError(f"{wanted} is absent from {data}: download it from {source}")


def read_text(path: Path) -> str:
    """The text of a file, decompressed if its name ends in .gz."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged, not whole gzip data ({shown(str(error))})") from None
    return decoded(content, str(path))


def read_archive(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each regular file in a tar archive, compressed or not, in the archive's order."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None  # as it is a regular file
                    if member.size > MAX_BYTES:
                        raise DataError(f"{path}: {member.name} has {member.size} bytes, wanted at most {MAX_BYTES}")
                    yield member.name, decoded(file.read(), f"{path}: {member.name}")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged, not a whole tar archive ({shown(str(error))})") from None


def read_parts(path: Path, folder: str, ending: str) -> dict[str, Part]:
    """{name without `ending`: file} of the files in `folder` that end so, in order of names; hidden ones are left out.

    path: a folder that has `folder`, or a tar archive that has it at any depth. Raises DataError if there are no such files.
    """
    pattern, parts = f"[!.]*{ending}", {}
    if path.is_dir():
        for file in (path / folder).glob(pattern):
            parts[file.name.removesuffix(ending)] = Part(str(file), read_text(file))
    else:
        for name, text in read_archive(path):
            member = PurePosixPath(name)
            if member.parent.name == folder and member.match(pattern):
                parts[member.name.removesuffix(ending)] = Part(f"{path}: {name}", text)
    if not parts:
        raise DataError(f"{path} has no files {folder}/*{ending}")
    return dict(sorted(parts.items()))


def decoded(content: bytes, what: str) -> str:
    """The text in `content`, which is UTF-8, with or without a mark in front."""
    if len(content) > MAX_BYTES:
        raise DataError(f"{what} has more than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{what}, line {line}: not UTF-8") from None


def json_lines(text: str, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _object(line, f"{what}, line {number}")


def texts(record: dict[str, Any], names: tuple[str, ...], what: str) -> list[str]:
    """The values under `names` in a record, all of which must be texts. `what` says where the record is, as its line."""
    found = []
    for name in names:
        value = record.get(name)
        if not isinstance(value, str):
            raise DataError(f"{what}: {name} is {kind(value) if name in record else 'absent'}, wanted a text")
        found.append(value)
    return found


def json_value(text: str, what: str) -> Any:
    """The JSON value in a text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{what}, line {error.lineno}: not JSON ({shown(error.msg)})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what}: not JSON ({shown(str(error))})") from None


def objects(value: Any, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it is, such as "what[3]", object) of each item of a JSON value, which must be a list of objects."""
    if not isinstance(value, list):
        raise DataError(f"{what} is {kind(value)}, wanted a list")
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise DataError(f"{what}[{i}] is {kind(item)}, wanted an object")
        yield f"{what}[{i}]", item


def _object(line: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what}: not JSON ({shown(str(error))})") from None
    if not isinstance(value, dict):
        raise DataError(f"{what}: {kind(value)}, wanted a JSON object")
    return value
