"""`baize`, writing slowly: run as a script, so that tests can interrupt or kill it at a known place.

`start` runs it, with a pipe that has a byte for each write of a tensor's piece, before it, and for each line of the output,
after it.

python slow_baize.py SECONDS recover --path_raw ...        sleeps that long before each write of a tensor's piece, and before
                                                            a file is removed
python slow_baize.py SECONDS generate --input ...          before each line of the output
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from baize_engine.batch.output import AnswerFile, Head
from baize_engine.checkpoint.writer import CheckpointWriter
from baize_engine.cli.main import main

TELLING = "SLOW_BAIZE_TELLING"  # the pipe's end, in the environment


def start(seconds: float, *arguments: object) -> tuple[subprocess.Popen[str], int]:
    """The process and its pipe, which tells of writes and ends with the process."""
    told, telling = os.pipe()
    command = [sys.executable, __file__, str(seconds), *map(str, arguments)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=[telling],
        env={**os.environ, TELLING: str(telling)},
    )  # fmt: skip
    os.close(telling)
    return child, told


def wait_for(told: int, many: int) -> None:
    """Returns after that many writes; AssertionError if the process ends before."""
    for _ in range(many):
        assert os.read(told, 1), "the process ended"


def slow_down(seconds: float) -> None:
    write = CheckpointWriter.write
    telling = os.environ.get(TELLING)

    def tell() -> None:
        if telling:
            os.write(int(telling), b".")

    def slow(self: CheckpointWriter, name: str, offset: int, view: memoryview) -> None:
        tell()
        time.sleep(seconds)
        write(self, name, offset, view)

    CheckpointWriter.write = slow  # type: ignore[method-assign]
    append = AnswerFile.append

    def slow_append(self: AnswerFile, head: Head, rest: dict[str, Any]) -> None:
        time.sleep(seconds)
        append(self, head, rest)
        tell()

    AnswerFile.append = slow_append  # type: ignore[method-assign]
    unlink = Path.unlink

    def slow_unlink(self: Path, missing_ok: bool = False) -> None:
        time.sleep(seconds)
        unlink(self, missing_ok)

    Path.unlink = slow_unlink  # type: ignore[method-assign]


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs, CI's perhaps, start with it ignored
    slow_down(float(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
