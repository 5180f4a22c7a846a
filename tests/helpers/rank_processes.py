"""Ranks as processes of a program: started as torchrun does, with the rendezvous store in this process, as its agent has it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

SECONDS = 300  # that a run may take until a test fails; it takes some


@dataclass
class Result:
    """code: of each rank. out, err: what all ranks have written, together."""

    codes: list[int]
    out: str
    err: str


@contextmanager
def started(
    folder: Path, program: Sequence[str], size: int, stdout: int | None = None, **environment: str
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`size` processes of `python *program`. What all print goes to folder/out, or the file number `stdout`, and folder/err."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    processes: list[subprocess.Popen[bytes]] = []
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        try:
            for rank in range(size):
                numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
                own = {name: str(number) for name, number in numbers.items()}
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *program],
                        env={**os.environ, **address, **own, "OMP_NUM_THREADS": "1", **environment},
                        stdin=subprocess.DEVNULL,
                        stdout=out if stdout is None else stdout,
                        stderr=err,
                    )
                )
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


def run(folder: Path, program: Sequence[str], size: int, **environment: str) -> Result:
    """What `size` ranks of `python *program` do until all have ended."""
    folder.mkdir(parents=True, exist_ok=True)
    with started(folder, program, size, **environment) as processes:
        codes = [process.wait(SECONDS) for process in processes]
    return Result(codes, (folder / "out").read_text(), (folder / "err").read_text())


@contextmanager
def torchrun(
    folder: Path, program: Sequence[str], size: int
) -> Iterator[tuple[subprocess.Popen[bytes], dict[int, int]]]:
    """`size` ranks of `python *program` under torchrun: its process, and the numbers of theirs, as soon as all have started."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *program]
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        agent = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        try:
            ranks: dict[int, int] = {}
            while len(ranks) < size and agent.poll() is None:
                ranks = {rank: pid for pid in children(agent.pid) if (rank := rank_of(pid)) is not None}
            yield agent, ranks
        finally:
            agent.kill()
            agent.wait()


def children(pid: int) -> list[int]:
    """Processes that this one has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rank_of(pid: int) -> int | None:
    """The rank that a process has by its environment; None before it runs its program."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(each[5:]) for each in variables if each.startswith(b"RANK=")), None)
