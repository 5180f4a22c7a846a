"""Running calls in threads, and stopping them early on an error or Ctrl-C."""

from __future__ import annotations

# `signal` without its enums, which take 20 times as long: a decode step looks at all signals
import _signal  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Check = Callable[[], None]  # returns, or raises to end the calling thread's work
_SIGNALS = tuple(signal.valid_signals())


class _Ended(BaseException):
    """Unwinds a call whose result is no longer wanted."""


def in_threads(
    call: Callable[[Item, Check], Result],
    items: Iterable[Item],
    threads: int,
    name: str = "baize",
    beside: AbstractContextManager[Any] | None = None,
) -> list[Result]:
    """Run `call(item, check)` for every item and return the results in the order of the items.

    After an error or Ctrl-C no further call begins, and running calls end at their next `check()`. Once all have ended, the
    first error (or the exception of the signal handler) is raised here.

    call: must call its `check` now and then; the time between two checks is how long it may outlive an error.
    threads: how many calls run at a time, at most.
    name: prefix of the threads' names.
    beside: a context entered before the first call and left after the last.
    """
    ended = threading.Event()
    errors: list[BaseException] = []

    def check() -> None:
        if ended.is_set() or arrived:
            raise _Ended

    def run(item: Item) -> Any:
        try:
            check()
            return call(item, check)
        except _Ended:
            return None  # never returned to the caller, who gets an error instead
        except BaseException as error:
            errors.append(error)
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
                futures.extend(pool.submit(run, item) for item in items)
                wait(futures)
            finally:  # also if no thread can be started
                ended.set()
        if errors:
            raise errors[0]
        return [future.result() for future in futures]
    finally:  # the error's traceback keeps this frame, and thus its lists, alive as long as the error
        errors.clear()
        futures.clear()


@contextmanager
def deferred() -> Iterator[list[BaseException]]:
    """Defer what signal handlers raise, such as KeyboardInterrupt, to the end of the block.

    The exceptions are collected in the list that this yields; the first one is raised at the end. Handlers that return work
    as usual. Do not nest: the inner block would see no signal. Outside the main thread this does nothing.

    Otherwise they could be raised between any two instructions of the main thread. Inside a lock or a thread pool of the
    standard library that turns them into other errors, or leaves a thread waiting for ever.
    """
    raised: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread runs signal handlers
        yield raised
        return
    original: dict[int, Callable[[int, Any], Any]] = {}

    def note(number: int, frame: Any) -> None:
        try:
            original[number](number, frame)
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001  raised at the end of the block
            raised.append(error)

    def restore(number: int) -> None:
        if _signal.getsignal(number) is note:  # otherwise the handler installed another, which stays
            _signal.signal(number, original[number])

    number: int
    try:
        with ExitStack() as stack:
            for number in _SIGNALS:
                handler = _signal.getsignal(number)
                if callable(handler):  # neither SIG_IGN nor SIG_DFL
                    original[number] = handler
                    stack.callback(restore, number)
                    _signal.signal(number, note)
            yield raised
    finally:
        if raised:
            first = raised[0]
            raised.clear()  # see the end of `in_threads`
            try:
                raise first
            finally:
                del first
