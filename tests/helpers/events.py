"""Locks and queues that tell a test when a thread has come to them."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any


class Door:
    """A lock for `with`, and the event that a thread has taken it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = threading.Event()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._taken.set()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self) -> None:
        """Returns once it was taken; AssertionError after a minute."""
        assert self._taken.wait(60)


class Queue(deque[Any]):
    """A deque, and a count of what was appended."""

    def __init__(self) -> None:
        super().__init__()
        self._came = threading.Semaphore(0)

    def append(self, item: Any) -> None:
        super().append(item)
        self._came.release()

    def wait(self, many: int) -> None:
        """Returns once so many have come, whatever has left since; AssertionError after a minute without the next."""
        for _ in range(many):
            assert self._came.acquire(timeout=60)
