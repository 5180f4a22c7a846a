"""Records `baize demo` in a terminal of 80 columns, and writes what it showed as an animated SVG.

The demo itself runs, and its chat is asked two questions. Only the times are made up: the real ones are too short to follow,
so that lines, keys and words come at the pace of somebody who reads and types.

    python benchmarks/record_demo.py docs/images/demo.svg
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from terminal_svg import Event, svg

COLUMNS, ROWS = 80, 34
COMMAND = "baize demo"
PROMPT = "you> "
QUESTIONS = ("What is the capital of Japan?", "What colour is snow?")
PATIENCE = 120.0  # seconds until the demo is given up
# Seconds before each line, an empty line, a key, a word of a reply, and whatever comes after a pause; and of the last picture
LINE, SECTION, KEY, WORD, PAUSE, HOLD = 0.12, 0.6, 0.045, 0.07, 0.35, 3.5

Chunk = tuple[str, str]  # "printed", "typed" or "replied", and the text


class Session:
    """The demo in a pseudo-terminal, and what it has shown."""

    def __init__(self, state: Path, **environment: str) -> None:
        """state: where the chat's history goes. environment: more variables."""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        fixed = {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "XDG_STATE_HOME": str(state)}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "baize_engine", "demo"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**kept, **fixed, **environment},
            start_new_session=True,
        )
        os.close(theirs)
        self._deadline = time.monotonic() + PATIENCE

    def until(self, end: str) -> str:
        """What is shown up to and with `end`, which must come last. EOFError if it does not come."""
        shown = b""
        while not shown.decode(errors="replace").endswith(end):
            ready = select.select([self._ours], [], [], max(0.0, self._deadline - time.monotonic()))[0]
            try:
                more = os.read(self._ours, 1 << 16) if ready else b""
            except OSError:  # Linux: the child has ended
                more = b""
            if not more:
                raise EOFError(f"{COMMAND} did not show {end!r} but {shown.decode(errors='replace')!r}")
            shown += more
        return shown.decode()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def close(self) -> int:
        """Leaves the chat; the exit code. No error where the demo has ended already."""
        try:
            with contextlib.suppress(OSError):
                self.type("\x04")
            return self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()
        finally:
            os.close(self._ours)


def record(questions: Iterable[str] = QUESTIONS) -> list[Chunk]:
    """Runs the demo, and asks its chat the questions."""
    with tempfile.TemporaryDirectory(prefix="baize-record-") as folder:
        session = Session(Path(folder))
        try:
            chunks = [("printed", session.until(PROMPT))]
            for question in questions:
                for key in question:
                    session.type(key)
                    chunks.append(("typed", session.until(key)))
                session.type("\r")
                chunks.append(("replied", session.until(PROMPT)))
        finally:
            session.close()
    return chunks


def paced(chunks: Iterable[Chunk]) -> Iterator[Event]:
    """The recording behind a shell's prompt, at a pace that can be followed."""
    now = 0.5
    yield 0.0, "$ "
    for key in COMMAND:
        yield round(now, 3), key
        now += KEY
    now += PAUSE
    yield round(now, 3), "\r\n"
    for kind, text in chunks:
        if kind == "typed":
            now += KEY
            yield round(now, 3), text
            continue
        pieces = re.findall(r"[^\r\n]*\r*\n|[^\r\n]*\r(?!\n)|[^\r\n]+$" if kind == "printed" else r"\s*\S+|\s+$", text)
        now += PAUSE
        for piece in pieces:
            now += WORD if kind == "replied" else LINE if piece.strip() else SECTION
            yield round(now, 3), piece


def drawn(chunks: Iterable[Chunk]) -> str:
    """The recording as SVG."""
    events = list(paced(chunks))
    summary = (
        "The demo recovers a model from a base and a diff, asks both the same questions, and chats with the model."
    )
    return svg(events, COLUMNS, ROWS, round(events[-1][0] + HOLD, 2), COMMAND, summary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="the SVG")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(drawn(record()), encoding="utf-8")
    print(f"{options.out}: {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
