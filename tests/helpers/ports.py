"""Ports for programs that are told where to listen."""

from __future__ import annotations

import random
import socket
from contextlib import closing
from pathlib import Path

_claims: list[socket.socket] = []  # of this process's ports, until it ends


def free_port() -> int:
    """A port that nobody takes before the program that gets it listens.

    It is none that the system gives out by itself, and one of a name that is claimed: other tests that run at the same time
    get other ports.
    """
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = [port for port in range(10_000, 1 << 16) if not first <= port <= last] or list(range(10_000, 1 << 16))
    for port in random.SystemRandom().sample(ports, min(100, len(ports))):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0baize-tests-port-{port}")  # of no file: it is gone with the process
            with closing(socket.socket()) as probe:
                probe.bind(("", port))
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return port
    raise RuntimeError("no port is free")
