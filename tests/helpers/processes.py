"""Processes that are not this one's children, and their end."""

from __future__ import annotations

import os
import select


def ends(pid: int, seconds: float = 60) -> bool:
    """Whether the process has ended or does so in this time; one whose new parent has not looked yet has ended too."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], seconds)[0])
    finally:
        os.close(process)


def on_two_cores() -> None:
    """In a child before its program: what it takes of memory then does not grow with the machine's cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
