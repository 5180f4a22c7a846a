"""Threads at work, and what ends them early: an error of one of them, or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Check = Callable[[], None]  # returns, or ends the call that it is called in


class _Ended(BaseException):
    """Ends a call whose result nobody waits for."""


def in_threads(
    call: Callable[[Item, Check], Result],
    items: Iterable[Item],
    threads: int,
    name: str = "baize",
    beside: AbstractContextManager[Any] | None = None,
) -> list[Result]:
    """`call(item, check)` for every item, on at most so many threads; the results in the order of the items.

    Once a call raises, or at Ctrl-C, calls that are under way end at their next `check()` and no other begins. The first
    error is raised here, or what Ctrl-C became, when all have ended. `beside` is entered before the first call and left after
    the last.
    """
    ended = threading.Event()
    failed: list[BaseException] = []

    def check() -> None:
        if ended.is_set() or arrived:
            raise _Ended

    def one(item: Item) -> Any:
        try:
            check()
            return call(item, check)
        except _Ended:
            return None  # nobody waits for it
        except BaseException as error:
            failed.append(error)
            ended.set()
            raise

    futures: list[Future[Any]] = []
    try:
        with (
            deferred() as arrived,
            beside or nullcontext(),
            ThreadPoolExecutor(threads, thread_name_prefix=name) as pool,
        ):
            try:
                futures.extend(pool.submit(one, item) for item in items)
                wait(futures)
            finally:  # also where the system has no thread to give, or a handler raises what is not deferred
                ended.set()
        if failed:
            raise failed[0]
        return [future.result() for future in futures]
    finally:  # the error's traceback holds this frame: what the frame still held would live as long as the error
        failed.clear()
        futures.clear()


@contextmanager
def deferred() -> Iterator[list[BaseException]]:
    """KeyboardInterrupt and SystemExit of the handlers of Ctrl-C and SIGTERM come into the list that this gives, and the first
    of them is raised at its end. Handlers that return do as ever. Not within another: the inner would learn of nothing.

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
            first = raised[0]
            raised.clear()  # see `in_threads`
            try:
                raise first
            finally:
                del first
