"""A rank's process as the others see it: its host and number, and how it ended. Does not know the store."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

# linux/pidfd.h: struct pidfd_info in its first size, of which are read here the mask and, last, exit_code
_INFO = struct.Struct("=Q52xi")
_INFO_EXIT = 1 << 3  # PIDFD_INFO_EXIT
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11  # PIDFD_GET_INFO


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
        try:
            return os.pidfd_open(self.pid)
        except ProcessLookupError:
            raise
        except OSError:  # a container may forbid it
            return None

    def how_it_ended(self, pidfd: int) -> str:
        """In words, once its pidfd is readable."""
        status = self._status_of_zombie()
        if status is None:  # its parent has reaped it by now
            status = _status_of_pidfd(pidfd)
        code = 0 if status is None else os.waitstatus_to_exitcode(status)
        if code < 0:
            return f"was killed by signal {-code}"
        return f"ended with code {code}" if code else "ended"

    def _status_of_zombie(self) -> int | None:
        """As wait() has it; None if its parent has reaped it already."""
        try:
            # state, field 3, is the first after the name in parentheses; exit_code is field 52 (proc_pid_stat(5))
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return int(fields[49]) if fields[0] in "ZX" else None


def _status_of_pidfd(pidfd: int) -> int | None:
    """As wait() had it for the parent, from Linux 6.15 on; None before."""
    info = bytearray(_INFO.size)
    _INFO.pack_into(info, 0, _INFO_EXIT, 0)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return None
    mask, status = _INFO.unpack(info)
    return status if mask & _INFO_EXIT else None


def _machine() -> str:
    """One text for all processes whose numbers mean the same: this start of the kernel, and the namespace."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux, or no /proc: nobody sees it
        return f"{socket.gethostname()} {os.getpid()}"
