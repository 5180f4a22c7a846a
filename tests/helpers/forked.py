"""Processes of the fork server: as `subprocess` starts `python -m ...` and `python -c ...`, without the time that torch takes.

For what a command does. How the interpreter starts (its variables, preloaded libraries, memory, time) needs a real process.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile

import fork_server
from fork_server import NUMBER, Order

READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "GOMP_", "MKL_", "OPENBLAS_")


def at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """What the interpreter and torch read while they start, and so the server's for all of its processes."""
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}


class Server:
    """One for each process of tests; it ends with them."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._at_start = at_start(os.environ)
        command = [sys.executable, fork_server.__file__, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip

    def order(self, order: Order, streams: Iterable[int]) -> socket.socket:
        """The socket that the process's number and status come from."""
        if (asked := at_start(order["environment"])) != self._at_start:
            raise ValueError(f"a real process is needed for what is read at its start: {asked}, not {self._at_start}")
        status, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._orders, [json.dumps(order).encode()], [theirs.fileno(), *streams])
        return status

    def close(self) -> None:
        self._orders.close()
        self._process.wait()


@cache
def server() -> Server:
    started = Server()
    atexit.register(started.close)
    return started


class Forked:
    """A process with these streams, by their numbers; the others are closed. Used as a `subprocess.Popen`."""

    def __init__(
        self,
        arguments: Sequence[object],
        streams: Mapping[int, int],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ) -> None:
        order = Order(
            arguments=[*map(str, arguments)],
            streams=[*streams],
            folder=os.path.abspath(cwd or "."),
            environment=dict(os.environ if env is None else env),
            session=start_new_session,
        )
        self._status = server().order(order, streams.values())
        self.pid = self._number()
        self.returncode: int | None = None

    def _number(self) -> int:
        content = self._status.recv(NUMBER.size)
        assert len(content) == NUMBER.size, "the fork server failed; what it says is on stderr"
        number: int = NUMBER.unpack(content)[0]
        return number

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or minus the signal; TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(self._number())
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended: the server has waited for it already."""
        if self.returncode is None and not select.select([self._status], [], [], 0)[0]:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def run(
    arguments: Sequence[object],
    stdin: bytes = b"",
    *,
    closed: Iterable[int] = (),
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[bytes]:
    """As subprocess.run with captured streams, of which some may be closed. `stdin` is what a pipe holds, 64 KiB, at most.

    After `timeout` seconds the process is killed: TimeoutExpired.
    """
    reading, writing = os.pipe()
    with open(reading, "rb") as given, TemporaryFile() as out, TemporaryFile() as err:
        with open(writing, "wb") as giving:
            os.set_blocking(writing, False)  # all of it fits into the pipe, or it is an error
            giving.write(stdin)
        every = {0: given.fileno(), 1: out.fileno(), 2: err.fileno()}
        process = Forked(arguments, {n: f for n, f in every.items() if n not in closed}, cwd=cwd, env=env)
        try:
            code = process.wait(timeout)
        except BaseException:
            process.send_signal(signal.SIGKILL)
            raise
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(list(arguments), code, out.read(), err.read())
