"""What the system refuses, as errors of this project that name the file. The original stays attached as the cause."""

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
    """CheckpointError naming `what`, an input file or folder, where the system fails to read it."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT:
            reason = broken_link(what) or f"{what} is absent (was it moved or removed?)"
            raise CheckpointError(reason) from error
        raise CheckpointError(f"{what} cannot be read ({error.strerror or error})") from error


def broken_link(path: str | os.PathLike[str]) -> str | None:
    """What to tell of `path` if it is a link that points nowhere, or lies in one; None of anything else."""
    for each in (Path(path), *Path(path).parents):
        if not os.path.islink(each):
            continue
        try:
            os.stat(each)
        except OSError as error:
            if error.errno in NOWHERE:
                told = f"{each} is a broken link: it points to {shown(os.readlink(each))}, {NOWHERE[error.errno]}"
                return told if each == Path(path) else f"{path} is not there: {told}"
    return None


def is_file(path: Path) -> bool:
    """Whether there is a file `path`, which may as well be absent. CheckpointError where it is a link that points nowhere.

    To take such a link for an absent file would lose, say, the tokenizer of a folder whose store was not mounted.
    """
    if broken := broken_link(path):
        raise CheckpointError(broken)
    with reading(path):
        return path.is_file()


def stat_of(path: Path) -> os.stat_result:
    """What the system says of an input file; CheckpointError where it does not."""
    with reading(path):
        return path.stat()


@contextmanager
def writing(path: str | os.PathLike[str], doing: str = "be written") -> Iterator[None]:
    """OutputError naming `path`, of the output, where the system fails at it."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(error.errno, f"{path} cannot {doing} ({error.strerror or error})") from error


def removing(paths: list[Path]) -> list[OutputError]:
    """Removes what is there of `paths`, all of them whatever fails; what failed, one error each."""
    failed = []
    for path in paths:
        try:
            with writing(path, "be removed"):
                path.unlink(missing_ok=True)
        except OutputError as error:
            failed.append(error)
    return failed
