"""Ranks as processes: the code that each runs, the store between them, and what they print all together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import pytest
import torch.distributed as dist
from forked import Forked

HEAD = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from baize_engine.distributed.world import World
World.set_torch_defaults()
import torch
from baize_engine.distributed.ranks import Ranks

def ready(*what):
    print("ready", *what, flush=True)

def wait():
    "For ever. A signal that comes right before a thread falls asleep is seen when it wakes."
    while True:
        threading.Event().wait(0.1)

def gather(ranks):
    part, out = torch.full((3, 4), float(rank)), torch.empty(size, 3, 4)
    ranks.all_gather(part, out)
    assert out.equal(torch.arange(float(size)).view(size, 1, 1).expand(size, 3, 4))

def follow(ranks):
    "What every rank but 0 does."
    while (messages := ranks.receive()) is not None:
        for message in messages:
            gather(ranks)
    ranks.leave()
    sys.exit(ranks.exit_code)

torch.set_num_threads(1)
from baize_engine.distributed import ranks, watch
ranks.LEAVING = watch.READERS = watch.CLEAN_UP = watch.ENDING = 60  # for who is slow; nobody hangs in most tests
world = World.of_environment()
rank, size = world.rank, world.size
"""
# torch's store asks DNS for the name of each peer; where an answer is lost, that is not to take 5 seconds (resolv.conf(5))
os.environ.setdefault("RES_OPTIONS", "timeout:1")
Starter = Callable[[str, dict[str, str], int, int], "Forked | subprocess.Popen[bytes]"]
SECONDS = 300  # that a run may take until the test fails; it takes a few


class Run:
    """The ranks of one run. By default a store of the test's, as torchrun's agent has one; with `port` rank 0 hosts it."""

    def __init__(self, folder: Path, code: str, size: int, start: Starter, came: range, port: int | None) -> None:
        """`came`: the ranks that start."""
        self._errors = open(folder / "stderr", "w+b")  # noqa: SIM115
        self.store = None if port else dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{self.store.port if self.store else port}"}
        if self.store:
            address["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        self.processes: dict[int, Forked | subprocess.Popen[bytes]] = {}
        self.lines: dict[int, BinaryIO] = {}
        for rank in came:
            reading, writing = os.pipe()
            self.lines[rank] = open(reading, "rb")  # noqa: SIM115
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            environment = {**os.environ, **address, **{name: f"{number}" for name, number in numbers.items()}}
            self.processes[rank] = start(HEAD + code, environment, writing, self._errors.fileno())
            os.close(writing)

    def ready(self, *ranks: int) -> None:
        """Wait until these, or all, say so."""
        for rank in ranks or self.processes:
            line = self.lines[rank].readline()
            assert line.startswith(b"ready"), (rank, line, self.errors())

    def entered(self, *ranks: int) -> None:
        """Wait until these are in the test's store."""
        assert self.store
        self.store.wait([f"baize/0/member/{rank}" for rank in ranks], timedelta(seconds=SECONDS))

    def send(self, number: int, *ranks: int) -> None:
        """A signal to these, or to all; none of several can act upon it before all have it."""
        those = [self.processes[rank] for rank in ranks or self.processes]
        together = len(those) > 1 and number not in (signal.SIGSTOP, signal.SIGCONT)
        for each in (signal.SIGSTOP, number, signal.SIGCONT) if together else (number,):
            for process in those:
                process.send_signal(each)

    def codes(self) -> list[int]:
        """Wait until all have ended."""
        return [process.wait(SECONDS) for process in self.processes.values()]

    def errors(self) -> str:
        """What all of them together wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read().decode()

    def who(self, rank: int) -> str:
        return f"rank {rank} ({socket.gethostname()}, pid {self.processes[rank].pid})"

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
            process.wait(SECONDS)
        for file in (self._errors, *self.lines.values()):
            file.close()


def forked(code: str, environment: dict[str, str], stdout: int, stderr: int) -> Forked:
    return Forked(["-c", code], {1: stdout, 2: stderr}, env=environment)


def started(code: str, environment: dict[str, str], stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    """For what torch reads when it is imported, and what its libraries do at exit."""
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=stdout, stderr=stderr)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes a Run, which the end of the test kills where it is still there."""
    runs: list[Run] = []

    def make(code: str, size: int, *, real: bool = False, came: range | None = None, port: int | None = None) -> Run:
        folder = tmp_path / f"{len(runs)}"
        folder.mkdir()
        runs.append(Run(folder, code, size, started if real else forked, came or range(size), port))
        return runs[-1]

    yield make
    for run in runs:
        run.close()
