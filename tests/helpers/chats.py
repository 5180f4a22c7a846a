"""`baize chat`, typed at a terminal of its own or piped, and the replies that are wanted of it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import forked
from commands import MODULE
from forked import Forked

from baize_engine import Engine, SamplingParams

FEW = SamplingParams(max_new_tokens=4, ignore_eos=True)


def command(model: Path, *more: str) -> list[str]:
    """What follows `python`."""
    options = ["--device", "cpu", "--threads", "1", "--max_new_tokens", "4", "--ignore_eos"]
    return [*MODULE, "chat", str(model), *options, *more]


def piped(model: Path, content: bytes, *more: str) -> tuple[int, str, list[str]]:
    done = forked.run(command(model, *more), content)
    return done.returncode, done.stdout.decode(), done.stderr.decode().splitlines()


def conversation(model: Path, *said: str) -> list[str]:
    """The replies to these messages, one after the other."""
    messages: list[dict[str, str]] = []
    replies = []
    with Engine.from_pretrained(model, device="cpu") as engine:
        for text in said:
            messages.append({"role": "user", "content": text})
            replies.append("".join(engine.stream(engine.chat_ids(messages), FEW)))
            messages.append({"role": "assistant", "content": replies[-1]})
    return replies


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, arguments: list[str], real: bool = False, **environment: str) -> None:
        """`python` with these arguments, as a process of the fork server or a real one."""
        self.ours, theirs = pty.openpty()
        env = {**os.environ, "TERM": "xterm", **environment}
        self.child: Forked | subprocess.Popen[bytes]
        if real:
            self.child = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                env=env,
                start_new_session=True,
            )
        else:
            self.child = Forked(arguments, dict.fromkeys(range(3), theirs), env=env, start_new_session=True)
        os.close(theirs)
        self.before, self.shown = b"", b""

    def read_until(self, wanted: bytes) -> None:
        deadline = time.monotonic() + 300
        while wanted not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.ours], [], [], 1)[0]:
                self.shown += os.read(self.ours, 4096)

    def say(self, typed: bytes) -> None:
        """Types at the next prompt."""
        self.read_until(b"you> ")
        self.before, self.shown = self.everything, b""
        os.write(self.ours, typed)

    @property
    def everything(self) -> bytes:
        return self.before + self.shown

    def end(self) -> int:
        code = self.child.wait(timeout=300)
        while select.select([self.ours], [], [], 0)[0]:
            try:
                self.shown += os.read(self.ours, 4096)
            except OSError:  # all of it was read
                break
        os.close(self.ours)
        return code
