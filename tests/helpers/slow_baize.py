"""`baize`, writing slowly: run as a script, so that tests can interrupt or kill it at a known place.

`start` runs it, with a pipe in which it tells of each BEGUN write of a tensor's piece, each tensor NOTED in a journal, each
line of answers WRITTEN and each REMOVING of a file, for which it waits until it can read a byte of stdin, or its end.

python slow_baize.py SECONDS recover --path_raw ...        sleeps that long before each write of a tensor's piece
python slow_baize.py SECONDS generate --input ...          before each line of the output
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from baize_engine.batch.output import AnswerFile
from baize_engine.checkpoint.writer import CheckpointWriter
from baize_engine.cli import main
from baize_engine.recovery.journal import Journal

BEGUN, NOTED, WRITTEN, REMOVING = b"b", b"n", b"w", b"r"
TELLING = "SLOW_BAIZE_TELLING"  # the pipe's end, in the environment
HOLDING = "SLOW_BAIZE_HOLDING"  # where it waits for a signal, and how often that has been told of by then


def start(
    seconds: float, *arguments: object, hold: tuple[bytes, int] | None = None, stdin: int = subprocess.DEVNULL
) -> tuple[subprocess.Popen[str], int]:
    """The process and the pipe, which ends with the process.

    `hold`: where its threads wait for a signal, once that has been told of so often. However late the signal, it finds them
    there; after SIGINT or SIGTERM they go on, as far as the command lets them.
    """
    told, telling = os.pipe()
    command = [sys.executable, __file__, str(seconds), *map(str, arguments)]
    child = subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=[telling],
        env={**os.environ, TELLING: str(telling), HOLDING: f"{hold[0].decode()} {hold[1]}" if hold else "- 0"},
    )  # fmt: skip
    os.close(telling)
    return child, told


def wait_for(told: int, what: bytes, many: int) -> None:
    """Returns when so many have been told of; AssertionError if the process ends before."""
    while many:
        found = os.read(told, 1)
        assert found, "the process ended"
        many -= found == what


def slow_down(seconds: float) -> None:
    write = CheckpointWriter.write
    telling = os.environ.get(TELLING)
    place, many = os.environ.get(HOLDING, "- 0").split()
    left = threading.Semaphore(max(int(many) - 1, 0))  # that do not wait

    def tell(what: bytes) -> None:
        if telling:
            os.write(int(telling), what)
        if what == place.encode() and not left.acquire(blocking=False):
            while signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as from the first one on
                time.sleep(0.002)

    def slow(self: CheckpointWriter, name: str, offset: int, view: memoryview) -> None:
        tell(BEGUN)
        time.sleep(seconds)
        write(self, name, offset, view)

    CheckpointWriter.write = slow  # type: ignore[method-assign]
    append = AnswerFile.append

    def slow_append(self: AnswerFile, head: str, rest: dict[str, Any]) -> None:
        time.sleep(seconds)
        append(self, head, rest)
        tell(WRITTEN)

    AnswerFile.append = slow_append  # type: ignore[method-assign]
    add = Journal.add

    def told_add(self: Journal[Any], name: str, record: Any) -> None:
        add(self, name, record)
        tell(NOTED)

    Journal.add = told_add  # type: ignore[method-assign]
    unlink = Path.unlink

    def awaited_unlink(self: Path, missing_ok: bool = False) -> None:
        tell(REMOVING)
        os.read(0, 1)
        unlink(self, missing_ok)

    Path.unlink = awaited_unlink  # type: ignore[method-assign]


if __name__ == "__main__":
    # a shell's background jobs, CI's perhaps, start with it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    slow_down(float(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
