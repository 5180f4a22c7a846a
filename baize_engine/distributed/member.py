"""A rank's process as the others see it: its host and number, and how it ended. Does not know the store."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Member:
    """One rank's process. Those of equal `machine` see each other's process numbers."""

    rank: int
    host: str
    pid: int
    machine: str

    @classmethod
    def of_this_process(cls, rank: int) -> Member:
        return cls(rank, socket.gethostname(), os.getpid(), _machine())

    @classmethod
    def from_json(cls, text: str | bytes) -> Member:
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"

    def pidfd(self) -> int | None:
        """A file number that is readable once the process has ended; None if this process cannot see it.

        ProcessLookupError if it has ended already.
        """
        if not hasattr(os, "pidfd_open") or self.machine != _machine():
            return None
        return os.pidfd_open(self.pid)

    def how_it_ended(self) -> str:
        """In words, after its pidfd became readable. The kernel tells more than "ended" only until its parent has asked."""
        try:
            # state, field 3, is the first after the name in parentheses; exit_code is field 52 (proc_pid_stat(5))
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return "ended"
        if fields[0] not in "ZX":
            return "ended"
        code = os.waitstatus_to_exitcode(int(fields[49]))
        if code < 0:
            return f"was killed by signal {-code}"
        return f"ended with code {code}" if code else "ended"


def _machine() -> str:
    """One text for all processes whose numbers mean the same: this start of the kernel, and the namespace."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux, or no /proc: nobody sees it
        return f"{socket.gethostname()} {os.getpid()}"
