"""Threads at work, and what ends them early: an error of one of them, or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Check = Callable[[], None]  # returns, or ends the call that it is called in


class _Ended(BaseException):
    """Ends a call whose result nobody waits for."""


def in_threads(
    call: Callable[[Item, Check], Result], items: Iterable[Item], threads: int, name: str = "baize"
) -> list[Result]:
    """`call(item, check)` for every item, on at most so many threads; the results in the order of the items.

    Once a call raises, or at Ctrl-C, calls that are under way end at their next `check()` and no other begins. What ended
    them is raised here when all have ended.
    """
    ended = threading.Event()

    def check() -> None:
        if ended.is_set() or arrived:
            raise _Ended

    def one(item: Item) -> Result:
        check()
        return call(item, check)

    with deferred() as arrived, ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        try:
            futures = [pool.submit(one, item) for item in items]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            ended.set()
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, _Ended):
            raise error
    return [future.result() for future in futures]


_innermost: list[BaseException] | None = None  # what `deferred` gave last, of those that have not ended


@contextmanager
def deferred() -> Iterator[list[BaseException]]:
    """KeyboardInterrupt and SystemExit of the handlers of Ctrl-C and SIGTERM come into the list that this gives, and the first
    of them is raised at its end. Handlers that return do as ever. One within another: into both, and at the end of each.

    They would be raised between any two instructions of the main thread. Where those are of a lock or a thread pool of the
    standard library, other errors take their place, or a thread waits for ever.
    """
    global _innermost
    raised: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():  # which alone handles signals
        yield raised
        return
    before: dict[int, Callable[[int, Any], Any]] = {}
    outer = _innermost

    def note(number: int, frame: Any) -> None:
        known = len(outer or ())
        try:
            before[number](number, frame)
        except (KeyboardInterrupt, SystemExit) as error:
            raised.append(error)
        raised.extend((outer or [])[known:])

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
            _innermost = raised
            yield raised
    finally:
        _innermost = outer
        if raised:
            raise raised[0]
