"""Ctrl-C while threads are at work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Ctrl-C, and SIGTERM where something handles it, are noted in the list that this gives, and handled at its end.

    The handler of Ctrl-C raises between any two instructions of the main thread. Where they are those of a lock or a thread
    pool of the standard library, other errors take its place, or a thread waits for ever.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # which alone handles signals
        yield arrived
        return
    before: dict[int, Callable[[int, Any], Any]] = {}
    number: int
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if callable(handler):  # neither ignored nor the death of the process
            before[number] = handler
    try:
        for number in before:
            signal.signal(number, lambda number, frame: arrived.append(number))
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            before[arrived[0]](arrived[0], None)
