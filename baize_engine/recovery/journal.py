"""The journal of a running recovery: which tensors, or files, are finished, so that a killed run can be resumed.

It lies in the output folder as `baize_journal.partial`: one JSON line that identifies the run, then one line for each
finished tensor. Resuming trusts none of it: a tensor counts as finished only if its bytes on disk still hash to the line, so
that neither a torn line nor data lost in a power cut can pass.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.os_errors import writing
from baize_engine.checkpoint.output_folder import PARTIAL
from baize_engine.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

JOURNAL_NAME = "baize_journal" + PARTIAL
Record = TypeVar("Record", bound="DataclassInstance")  # a dataclass: of a tensor, or of a file


def is_unfinished(folder: Path) -> bool:
    """Whether `folder` holds a result that a run has begun and not finished."""
    with writing(folder, "be looked into"):
        return (folder / JOURNAL_NAME).exists()


def refuse_busy(folder: Path) -> None:
    """OutputError where another recovery is writing in `folder`."""
    if is_unfinished(folder):
        path = folder / JOURNAL_NAME
        with writing(path, "be opened"):
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                raise _finished_meanwhile(folder) from None
            try:
                _lock(fd, path)
            finally:
                os.close(fd)


class Journal(Generic[Record]):
    """An open, locked journal. `finished` holds what an earlier run with the same fingerprint `run` noted, and what `add` does.

    `resume` opens the journal that lies in `folder`; without it there must be none. `parse` makes a record of its JSON form,
    or raises KeyError, TypeError or ValueError. OutputError where another recovery holds the journal, or it is of another run.
    """

    def __init__(self, folder: Path, run: str, parse: Callable[[Mapping[str, Any]], Record], resume: bool) -> None:
        self.path = folder / JOURNAL_NAME
        self._parse = parse
        how = 0 if resume else os.O_CREAT | os.O_EXCL
        with writing(self.path, "be opened"):
            try:
                self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | how, 0o644)
            except FileExistsError:
                raise _busy(self.path) from None
            try:
                _lock(self._fd, self.path)
                self._check_still_there()
                self.finished = self._read(run)
            except BaseException:
                os.close(self._fd)
                if not resume:
                    self.remove()
                raise

    def _check_still_there(self) -> None:
        """OutputError where the recovery that held the lock finished, and removed its journal, while this one opened it."""
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            named = None
        if named is None or not os.path.samestat(named, os.fstat(self._fd)):
            raise _finished_meanwhile(self.path.parent)

    def _read(self, run: str) -> dict[str, Record]:
        with open(self._fd, "rb", closefd=False) as file:
            lines = [line for line in file.read().split(b"\n") if line]
        known = strict_json.whole_line(lines[0]).get("run") if lines else None
        if known is None:  # killed, or power was cut, before the first line was whole: nothing is known to be finished
            os.ftruncate(self._fd, 0)
            self._append({"run": run})
            return {}
        if known != run:
            raise OutputError(
                errno.ENOTEMPTY,
                f"{self.path.parent} holds an unfinished result of other sources or options: "
                "resume with the same ones, or remove the folder",
            )
        records: dict[str, Record] = {}
        for line in lines[1:]:
            try:
                item = strict_json.whole_line(line)
                records[item["name"]] = self._parse(item["record"])
            except (ValueError, KeyError, TypeError):
                continue  # the line that was being written when the run was killed
        return records

    def add(self, name: str, record: Record) -> None:
        """Notes that `name` is finished."""
        self._append({"name": name, "record": asdict(record)})
        self.finished[name] = record

    def _append(self, item: dict[str, object]) -> None:
        # one write, so that threads do not mix; a line break before it, so that a torn line spoils only itself
        line = memoryview(b"\n" + json.dumps(item).encode() + b"\n")
        with writing(self.path):
            while line:
                line = line[os.write(self._fd, line) :]

    def remove(self) -> None:
        """Removes the file; the lock holds until `close`."""
        with writing(self.path, "be removed"):
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        # nothing in a journal is trusted, and every line was written or its failure raised
        with suppress(OSError):
            os.close(self._fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(path) from None


def _busy(path: Path) -> OutputError:
    return OutputError(errno.EBUSY, f"{path.parent}: another recovery is writing here")


def _finished_meanwhile(folder: Path) -> OutputError:
    return OutputError(errno.EBUSY, f"{folder}: another recovery has just finished there")
