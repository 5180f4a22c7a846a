"""The output of a file of prompts: JSON lines that are only appended, so that a killed run can be resumed without loss.

Every line begins with its record's number and a digest of the record and of everything else that determines the answer, so
that the output of another run is not continued by mistake. Lines are appended whole and synced every second. A line that was
cut short when the run was killed has no line break, and is removed. Knows no prompts and no model.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.os_errors import writing
from baize_engine.checkpoint.output_file import sync_folder
from baize_engine.errors import OutputError

SYNC = 1.0  # seconds between syncs: a killed process loses no line anyway, and a disk may take long to sync


def digest(content: bytes, run: str) -> str:
    """A digest of a record's bytes, and of `run`, which describes the model and all else that determines the answer."""
    return hashlib.sha256(run.encode() + b"\n" + content).hexdigest()[:16]


def head(index: int, content: bytes, run: str) -> str:
    """The beginning of the answer line to record number `index`; its arguments else are those of `digest`."""
    return f'{{"index": {index}, "input": "{digest(content, run)}", '


class AnswerFile:
    """An open, locked output file. A context manager, which removes a new file that got no line.

    path: must not exist, unless `resume`. heads: of all records, in order; each line in the file must answer its record.
    answers: names of which an answer has one. option: the flag that names the file, for messages. header: a line that comes
    before the answers, with its line break. first: number of the first record, for messages.
    done: number of lines in the file; `failed` of them are errors. torn: whether an incomplete line was removed.
    Raises OutputError, which names the file and the line, and leaves the file as it was.
    """

    def __init__(
        self,
        path: Path,
        heads: Iterable[str],
        resume: bool,
        answers: Collection[str] = ("completions", "error"),
        option: str = "--output",
        header: bytes = b"",
        first: int = 0,
    ) -> None:
        self.path, self._answers, self._option = path, answers, option
        self._header, self._first = header, first
        self.done = self.failed = 0
        self.torn = False
        self._made = not path.exists()
        if self._made and path.is_symlink():
            target = os.readlink(path)
            raise OutputError(
                errno.ENOENT, f"{path} is a link to {target}, which is absent: remove it, or name another {option}"
            )
        if not resume and not self._made:
            raise OutputError(errno.EEXIST, f"{path} exists: use --resume to continue it, or name another {option}")
        how = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | (0 if resume else os.O_EXCL)
        self._fd = os.open(path, how, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise OutputError(errno.EINVAL, f"{path} is not a regular file, wanted one that can be resumed")
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(errno.EBUSY, f"{path}: another run is writing to it") from None
            self._synced = time.monotonic()
            self._size = self._take_up(heads)
            os.ftruncate(self._fd, self._size)
            sync_folder(path.parent)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._made and not self._size:
                self.path.unlink(missing_ok=True)
            else:
                self._sync()
        finally:
            os.close(self._fd)

    def append(self, head: str, rest: dict[str, Any]) -> None:
        """Appends a record's line: whole, or not at all if writing fails or is interrupted.

        Raises OutputError where the file cannot be written, or something else has changed its size.
        """
        self._write(line(head, rest), 1, "error" in rest)

    def begin(self) -> None:
        """Writes the header, which otherwise comes with the first answer: for a file that has none."""
        self._write(b"", 0, False)

    def _write(self, lines: bytes, done: int, failed: bool) -> None:
        data = memoryview(lines if self._size else self._header + lines)
        end = self._size + len(data)
        try:
            with writing(self.path):
                while data:
                    data = data[os.write(self._fd, data) :]
        finally:
            found = os.fstat(self._fd).st_size
            if found == end:  # also where Ctrl-C came right after the write
                self._size = end
                self.done += done
                self.failed += failed
            else:
                os.ftruncate(self._fd, min(found, self._size))
        if found != end:
            raise OutputError(
                errno.EIO,
                f"{self.path} has {found} bytes after a line was written, wanted {end}: something else is changing it",
            )
        if time.monotonic() - self._synced >= SYNC:
            self._sync()

    def _sync(self) -> None:
        with writing(self.path, "be synced"):
            os.fsync(self._fd)
        self._synced = time.monotonic()

    def _take_up(self, heads: Iterable[str]) -> int:
        """Checks the lines in the file, and returns the size of the complete ones in bytes."""
        size, expected = 0, iter(heads)
        with open(self._fd, "rb", closefd=False) as file:
            if self._header and (found := file.readline(len(self._header))):
                self.torn = found != self._header
                if not self._header.startswith(found):
                    raise self._other("line 1 is not that of this run")
                if self.torn:
                    return 0
                size = len(found)
            for number, raw in enumerate(file, 2 if self._header else 1):
                begin = next(expected, "").encode()
                if not begin:
                    raise self._other(f"line {number} is there, but the input has only {self.done} record(s)")
                self.torn = not raw.endswith(b"\n")
                rest = {} if self.torn else strict_json.whole_line(raw)
                known = begin.startswith(raw[: len(begin)]) and (self.torn or not rest.keys().isdisjoint(self._answers))
                if not known:
                    raise self._other(f"line {number} is not the answer to record {self._first + self.done}")
                if self.torn:
                    break
                size += len(raw)
                self.done += 1
                self.failed += "error" in rest
        return size

    def _other(self, found: str) -> OutputError:
        why = "it was made from another input, model or parameters, or has been changed since"
        remedy = f"resume with the same ones, or name another {self._option}"
        return OutputError(errno.EEXIST, f"{self.path}: {found}: {why}; {remedy}")


class AnswerStream:
    """Writes the same lines to a stream, such as standard output, which can be neither resumed nor locked."""

    torn = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.done = self.failed = 0

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        pass  # each line was flushed, and the stream belongs to the caller

    def append(self, head: str, rest: dict[str, Any]) -> None:
        """Appends a record's line."""
        self._stream.write(line(head, rest))
        self._stream.flush()
        self.done += 1
        self.failed += "error" in rest


def line(head: str, rest: dict[str, Any]) -> bytes:
    """A record's answer line."""
    text = head + json.dumps(rest, ensure_ascii=False)[1:] + "\n"
    # half of a surrogate pair, which UTF-8 cannot encode, is escaped as in JSON
    return text.encode("utf-8", "backslashreplace")
