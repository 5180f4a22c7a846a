"""The output of a file of prompts: JSON lines that only grow, so that a killed run can be taken up without loss.

Every line names its record's number and a digest of the record and of what else decides about the answer, which is how
another run's output is told from one to go on with. Lines are appended whole, and synced every second; one that was torn by a
kill lacks its line break, and is cut off. Knows no prompts and no model.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.os_errors import writing
from baize_engine.checkpoint.output_file import sync_folder
from baize_engine.errors import OutputError

SYNC = 1.0  # seconds from one to the next: a kill loses no line without, and a disk may take long for it


@dataclass(frozen=True)
class Head:
    """How the line of a record begins."""

    index: int
    digest: str

    @staticmethod
    def of(index: int, content: bytes, run: str) -> Head:
        """For the record `content` of a run that `run` describes: the model, the parameters of all records."""
        return Head(index, hashlib.sha256(run.encode() + b"\n" + content).hexdigest()[:16])

    def text(self) -> str:
        """The line's first characters, the same in every run."""
        return f'{{"index": {self.index}, "input": "{self.digest}", '


class AnswerFile:
    """An open, locked output. A context manager; a file that it made and that got no line is removed.

    Without `resume` the file must not exist. With it, `heads` are those of all records, and every line that is there must
    be the answer to its record; `done` lines are, `failed` of them errors. `torn` tells that an unfinished line was cut.
    OutputError names the file and the line, and leaves the file as it was.
    """

    def __init__(self, path: Path, heads: Iterable[Head], resume: bool) -> None:
        self.path = path
        self.done = self.failed = 0
        self.torn = False
        self._made = not path.exists()
        if self._made and path.is_symlink():
            raise OutputError(
                errno.ENOENT,
                f"{path} is a link to {os.readlink(path)}, which is absent: remove it, or name another --output",
            )
        if not resume and not self._made:
            raise OutputError(errno.EEXIST, f"{path} exists: --resume goes on with it, or name another --output")
        how = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | (0 if resume else os.O_EXCL)
        self._fd = os.open(path, how, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise OutputError(errno.EINVAL, f"{path} is not a regular file, wanted one that can be taken up")
            self._lock()
            self._synced = time.monotonic()
            self._size = self._take_up(heads)
            os.ftruncate(self._fd, self._size)
            sync_folder(path.parent)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._made and not self._size:
                self.path.unlink(missing_ok=True)
            else:
                self._sync()
        finally:
            os.close(self._fd)

    def append(self, head: Head, rest: dict[str, Any]) -> None:
        """Adds a record's line, whole or, where writing fails or is interrupted, not at all."""
        data = memoryview(_line(head, rest))
        written = 0
        try:
            with writing(self.path):
                while written < len(data):
                    written += os.write(self._fd, data[written:])
        except BaseException:
            if os.fstat(self._fd).st_size == self._size + len(data):  # Ctrl-C came right behind the write
                self._count(len(data), rest)
            else:
                os.ftruncate(self._fd, self._size)
            raise
        self._count(len(data), rest)
        if time.monotonic() - self._synced >= SYNC:
            self._sync()

    def _count(self, nbytes: int, rest: dict[str, Any]) -> None:
        self._size += nbytes
        self.done += 1
        self.failed += "error" in rest

    def _sync(self) -> None:
        with writing(self.path, "be synced"):
            os.fsync(self._fd)
        self._synced = time.monotonic()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(errno.EBUSY, f"{self.path}: another run is writing there") from None

    def _take_up(self, heads: Iterable[Head]) -> int:
        """Checks what is there; the size of its whole lines."""
        size, expected = 0, iter(heads)
        with open(self._fd, "rb", closefd=False) as file:
            for number, raw in enumerate(file, 1):
                head = next(expected, None)
                if head is None:
                    raise self._other(f"line {number} is there, and the input has {self.done} records")
                begin = head.text().encode()
                if not raw.endswith(b"\n"):
                    if not begin.startswith(raw[: len(begin)]):
                        raise self._other(f"line {number} is not the answer to record {head.index}")
                    self.torn = True
                    break
                rest = strict_json.whole_line(raw)
                if not raw.startswith(begin) or not {"completions", "error"} & set(rest):
                    raise self._other(f"line {number} is not the answer to record {head.index}")
                size += len(raw)
                self.done += 1
                self.failed += "error" in rest
        return size

    def _other(self, found: str) -> OutputError:
        return OutputError(
            errno.EEXIST,
            f"{self.path}: {found}: it was made from another input, model or parameters, or changed since; "
            "resume with the same ones, or name another --output",
        )


class AnswerStream:
    """The same lines in a stream that others read, such as standard output: nothing of it can be taken up, locked or cut."""

    torn = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.done = self.failed = 0

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        pass  # each line was flushed, and the stream is its owner's

    def append(self, head: Head, rest: dict[str, Any]) -> None:
        """Adds a record's line."""
        self._stream.write(_line(head, rest))
        self._stream.flush()
        self.done += 1
        self.failed += "error" in rest


def _line(head: Head, rest: dict[str, Any]) -> bytes:
    text = head.text() + json.dumps(rest, ensure_ascii=False)[1:] + "\n"
    # half of a surrogate pair, which JSON can spell and UTF-8 cannot, is spelled as JSON does
    return text.encode("utf-8", "backslashreplace")
