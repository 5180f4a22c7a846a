"""Who may use an engine's parts now: one call at a time, of whatever thread. Knows nothing of what the calls do.

A decoder's buffers, a cache's lists and a scheduler's plans are written by every step, so that two steps must never mix.
Between steps an iterator that is read slowly may wait for hours, and holds no turn then. What an iterator that nobody reads any
more held is freed in a turn, too: the garbage collector may find it in any thread, in the middle of another call.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from baize_engine import forks
from baize_engine.errors import BackendError, RequestError

Item = TypeVar("Item")


class Turns:
    """Calls take turns about in the order in which they come. After `close` there are no more."""

    def __init__(self) -> None:
        self._lock = _FairLock()
        self._thread: int | None = None  # of the call whose turn it is
        self._process = os.getpid()
        self._closed = False
        self._under_way: set[Generator[Any, None, None]] = set()  # held, so that only `_end` ends them
        self._ends: deque[Callable[[], None]] = deque()

    def check(self) -> None:
        """RequestError once it is closed."""
        if self._closed:
            raise RequestError("this engine is closed")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for a turn, and has it. RequestError where this engine is closed by then, or this thread has a turn already."""
        self._check_process()
        self.check()
        if self._thread == threading.get_ident():  # a signal's handler, a finaliser
            raise RequestError("this thread is in the middle of another call to this engine, wanted that to end first")
        try:
            with self._lock:
                self.check()
                self._thread = threading.get_ident()
                try:
                    yield
                finally:
                    self._thread = None
        finally:
            self._end_those()

    def each(self, run: Generator[Item, None, None]) -> Generator[Item, None, None]:
        """What `run` yields, each made in a turn of its own. Leaving this iterator closes `run`."""
        end = object()
        try:
            while True:
                with self.turn():
                    self._under_way.add(run)
                    item = next(run, end)
                if item is end:
                    return
                yield item  # type: ignore[misc]
        finally:
            self._later(lambda: self._end(run))

    def close(self, let_go: Callable[[], None]) -> None:
        """Ends all that is under way, in other threads at the next step, and calls `let_go`; waits for that if it can."""
        self._closed = True

        def end() -> None:
            for run in list(self._under_way):
                self._end(run)
            let_go()

        self._ends.append(end)
        if self._thread != threading.get_ident() and self._process == os.getpid():
            with self._lock:
                self._call_ends()

    def _end(self, run: Generator[Any, None, None]) -> None:
        run.close()
        self._under_way.discard(run)

    def _later(self, end: Callable[[], None]) -> None:
        """Calls `end` in a turn: now if nobody has one, else after that. Waits for nobody: it runs in finalisers."""
        self._ends.append(end)
        self._end_those()

    def _end_those(self) -> None:
        # Once more after each release: what came while the lock was taken has left it to who had it.
        while self._ends and self._thread != threading.get_ident() and self._lock.take_free():
            try:
                self._call_ends()
            finally:
                self._lock.release()

    def _call_ends(self) -> None:
        self._thread = threading.get_ident()
        try:
            while self._ends:
                self._ends.popleft()()
        finally:
            self._thread = None

    def _check_process(self) -> None:
        if self._process == os.getpid():
            return
        forks.check()
        if self._thread is not None:
            raise BackendError(
                "this process was made by fork in the middle of a call to this engine: start it by multiprocessing's "
                "'spawn', and load the model there"
            )
        self._lock, self._process = _FairLock(), os.getpid()


class _FairLock:
    """A lock that who has just let go of it gets behind one who waits. A context manager, which Ctrl-C leaves untaken."""

    def __init__(self) -> None:
        self._door = threading.Lock()  # held by the one who is next
        self._taken = threading.RLock()  # knows its owner, which is all that it is for

    def __enter__(self) -> None:
        try:
            with self._door:
                self._taken.acquire()
        except BaseException:
            if self._taken._is_owned():  # type: ignore[attr-defined]
                self._taken.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taken.release()

    def take_free(self) -> bool:
        """Takes it if nobody has it; whether it did."""
        return self._taken.acquire(blocking=False)

    def release(self) -> None:
        self._taken.release()
