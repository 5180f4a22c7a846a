"""Seconds of steps (benchmarks/gpu_run.py) that are told instead of waited for.

A step calls `spend`, which tells the test's `StepClock` so and returns when the clock lets it go on. A limit passes when a step
asks for more: it is then known to have come so far.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest  # not in steps

NAME = "STEP_CLOCK"  # the variable with the socket's name
SPEND = "from step_clock import spend; "  # the begin of a step's code


def spend(seconds: float, deaf: bool = False) -> None:
    """In a step. `deaf`: SIGINT does not end it, of which the clock hears."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        if deaf:
            signal.signal(signal.SIGINT, lambda *_: line.send(b"inf"))
        line.connect("\0" + os.environ[NAME])
        line.send(str(seconds).encode())
        line.recv(64)


class Ended(Exception):
    """A process is gone, and asks for no time."""


class StepClock:
    """Processes that the test starts, and theirs, find it by their environment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("")  # the system gives it a name
        self._listener.listen()
        monkeypatch.setenv(NAME, self._listener.getsockname()[1:].decode())
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)

    def close(self) -> None:
        self._listener.close()

    def spending(self, process: subprocess.Popen) -> socket.socket:
        """Waits until `process`, or one that it has started, asks for time, and returns the socket that it does so by."""
        end = os.pidfd_open(process.pid)
        try:
            ready, _, _ = select.select([self._listener, end], [], [])
        finally:
            os.close(end)
        if self._listener not in ready:
            raise Ended
        return self._listener.accept()[0]

    def rule(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        """From now on the time of these modules, and of processes that are waited for, is this clock's."""
        clock = self

        class Process(subprocess.Popen):
            line: socket.socket | None = None

            def wait(self, timeout: float | None = None) -> int:
                self._spend(timeout)
                return super().wait()

            def communicate(self, input: Any = None, timeout: float | None = None) -> Any:
                self._spend(timeout)
                return super().communicate(input)

            def _spend(self, left: float | None) -> None:
                while left is not None and (seconds := self._asked()) is not None:
                    clock.now += min(seconds, left)
                    if seconds > left:
                        raise subprocess.TimeoutExpired(self.args, left)
                    left -= seconds
                    self._go_on()

            def _asked(self) -> float | None:
                """What it asks for; None where it ends."""
                try:
                    self.line = self.line or clock.spending(self)
                except Ended:
                    return None
                asked = self.line.recv(64)
                return float(asked) if asked else None

            def _go_on(self) -> None:
                assert self.line
                with self.line:
                    self.line.send(b"go on")
                self.line = None

        monkeypatch.setattr(subprocess, "Popen", Process)
        for module in modules:
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now, time=time.time))
