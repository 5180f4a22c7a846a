"""Ctrl-C while threads are at work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def deferred() -> Iterator[list[BaseException]]:
    """KeyboardInterrupt and SystemExit of the handlers of Ctrl-C and SIGTERM come into the list that this gives, and the first
    of them is raised at its end. Handlers that return do as ever.

    They would be raised between any two instructions of the main thread. Where those are of a lock or a thread pool of the
    standard library, other errors take their place, or a thread waits for ever.
    """
    raised: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():  # which alone handles signals
        yield raised
        return
    before: dict[int, Callable[[int, Any], Any]] = {}

    def note(number: int, frame: Any) -> None:
        try:
            before[number](number, frame)
        except (KeyboardInterrupt, SystemExit) as error:
            raised.append(error)

    def restore(number: int) -> None:
        if signal.getsignal(number) is note:  # else the handler chose another, which stays
            signal.signal(number, before[number])

    number: int
    try:
        with ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):  # neither ignored nor the death of the process
                    before[number] = handler
                    stack.callback(restore, number)
                    signal.signal(number, note)
            yield raised
    finally:
        if raised:
            raise raised[0]
