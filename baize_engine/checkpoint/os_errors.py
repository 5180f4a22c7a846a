"""Errors of the operating system, turned into this package's errors, which name the file. The original is the cause."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from baize_engine.errors import CheckpointError, OutputError
from baize_engine.printable import shown

NOWHERE = {errno.ENOENT: "and nothing is there", errno.ENOTDIR: "and nothing is there", errno.ELOOP: "in a circle"}


@contextmanager
def reading(what: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of the block into a CheckpointError naming `what`, an input file or folder."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT:
            reason = broken_link(what) or f"{what} is absent (was it moved or removed?)"
            raise CheckpointError(reason) from error
        raise CheckpointError(f"{what} cannot be read ({error.strerror or error})") from error


def broken_link(path: str | os.PathLike[str]) -> str | None:
    """The message for a `path` that is a broken link, or below one; None for any other."""
    for part in (Path(path), *Path(path).parents):
        if not os.path.islink(part):
            continue
        try:
            os.stat(part)
        except OSError as error:
            if error.errno in NOWHERE:
                reason = f"{part} is a broken link: it points to {shown(os.readlink(part))}, {NOWHERE[error.errno]}"
                return reason if part == Path(path) else f"{path} is not there: {reason}"
    return None


def is_file(path: Path) -> bool:
    """Whether an optional file is there. CheckpointError if it is a broken link.

    Taking such a link for an absent file would, for example, ignore the tokenizer of a folder whose store is not mounted.
    """
    if broken := broken_link(path):
        raise CheckpointError(broken)
    with reading(path):
        return path.is_file()


def stat_of(path: Path) -> os.stat_result:
    """The stat of an input file. CheckpointError if that fails."""
    with reading(path):
        return path.stat()


@contextmanager
def writing(path: str | os.PathLike[str], doing: str = "be written") -> Iterator[None]:
    """Turn an OSError of the block into an OutputError: "`path` cannot `doing`", then the reason."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(error.errno, f"{path} cannot {doing} ({error.strerror or error})") from error


@contextmanager
def gathering(errors: list[OutputError]) -> Iterator[None]:
    """Add an OutputError of the block to `errors`, so that what comes after it is done all the same."""
    try:
        yield
    except OutputError as error:
        errors.append(error)
