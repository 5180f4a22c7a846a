"""A Python that has imported torch and waits: each process that it forks goes on as `python -m MODULE ...` or `python -c CODE
...` would, a second of processor time sooner.

`forked.py` starts it, as a script, and orders processes through the socket whose number is its argument. It imports nothing
of baize_engine, runs nothing of torch's and has one thread, so that nothing of its own goes on in what it forks.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
from types import ModuleType
from typing import TypedDict

NUMBER = struct.Struct("i")
MOST = 1 << 20  # bytes of an order
FREE = 512  # nobody's descriptors begin here
STREAMS = ("stdin", "stdout", "stderr")


class Order(TypedDict):
    """With it come the descriptors of a socket, for the process's number and, at its end, its status; and of its streams."""

    arguments: list[str]  # from -m or -c on
    streams: list[int]  # which of 0, 1 and 2 come; the others are closed
    folder: str
    environment: dict[str, str]
    session: bool  # whether the process begins one of its own


def serve(orders: socket.socket) -> Order | None:
    """In each forked process its order; None in the server, once nobody can order any more."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the tests end by it, and close the socket
    running: dict[int, tuple[int, socket.socket]] = {}  # by what select() sees end
    while True:
        ready, *_ = select.select([orders.fileno(), *running], [], [])
        for ended in running.keys() & ready:
            child, status = running.pop(ended)
            with status:
                status.send(NUMBER.pack(os.waitpid(child, 0)[1]), socket.MSG_NOSIGNAL)
            os.close(ended)
        if orders.fileno() not in ready:
            continue
        content, descriptors, _, _ = socket.recv_fds(orders, MOST, 1 + len(STREAMS))
        if not content:
            return None
        order: Order = json.loads(content)
        status, given = socket.socket(fileno=descriptors[0]), descriptors[1:]
        if (child := os.fork()) == 0:
            signal.signal(signal.SIGINT, interrupt)
            for sibling, (_, other) in running.items():
                os.close(sibling)
                other.close()
            orders.close()
            status.close()
            take(order["streams"], given)
            return order
        for descriptor in given:  # whose other ends are to see when the child closes its own
            os.close(descriptor)
        status.send(NUMBER.pack(child))
        running[os.pidfd_open(child)] = child, status


def take(numbers: list[int], descriptors: list[int]) -> None:
    """Gives the descriptors these numbers, and closes those of 0, 1 and 2 that are not among them."""
    aside = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, FREE) for descriptor in descriptors]
    for descriptor in (0, 1, 2, *descriptors):
        os.close(descriptor)
    for number, descriptor in zip(numbers, aside, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)


def reopen(number: int) -> None:
    """Makes the text stream of this number as the interpreter does at its start; None where it is closed."""
    usual, opened = getattr(sys, STREAMS[number]), None
    try:
        os.fstat(number)
    except OSError:
        pass
    else:
        through = usual.write_through
        content = open(number, "wb" if number else "rb", 0 if through and number else -1, closefd=False)  # noqa: SIM115
        lines = number == 2 or os.isatty(number)
        opened = io.TextIOWrapper(content, usual.encoding, usual.errors, "\n", lines, through)  # type: ignore[type-var]
    for name in (STREAMS[number], f"__{STREAMS[number]}__"):
        setattr(sys, name, opened)


def leave_the_servers_libraries() -> None:
    """Ends the process before the destructors of what the server had loaded, torch's 0.13 s; those of later libraries run."""
    libc = ctypes.CDLL(None)
    libc.on_exit(libc._exit, None)  # with the exit code


def run(kind: str, what: str, *rest: str) -> None:
    """As the interpreter runs -m and -c."""
    sys.argv = [kind, *rest]
    if kind == "-m":
        sys.path[0] = os.getcwd()
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = ""
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    socket_of_orders = socket.socket(fileno=int(sys.argv[1]))
    import safetensors.torch  # noqa: F401
    import sentencepiece  # noqa: F401

    gc.freeze()  # pages of what was imported stay shared
    if ordered := serve(socket_of_orders):
        if ordered["session"]:
            os.setsid()
        os.chdir(ordered["folder"])
        os.environ.clear()
        os.environ.update(ordered["environment"])
        for stream in range(len(STREAMS)):
            reopen(stream)
        leave_the_servers_libraries()
        run(*ordered["arguments"])
