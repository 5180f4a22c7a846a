"""Turns: which thread may use an engine's loop now. Knows nothing of what is done with it.

A step writes to the decoder's buffers, the block pool and the scheduler's lists, so that two steps must never mix. Whoever
waits for output takes a turn for each step. What a call held that nobody reads any more is freed in a turn, too: the garbage
collector may find it in any thread, in the middle of another call.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from baize_engine.backend import forks
from baize_engine.errors import BackendError, RequestError
from baize_engine.interrupts import deferred


class Turns:
    """Calls take turns about in the order in which they come. After `close` there are no more."""

    def __init__(self) -> None:
        self._renew()
        self._closed = False
        self._child_of_a_call = False  # made by fork while a call was under way
        self._forked = False
        self._ends: deque[Callable[[], None]] = deque()
        _ALL.add(self)

    def _renew(self) -> None:
        self._door = threading.Lock()  # held by the one who is next, so that who has just had a turn gets behind it
        self._taken = threading.RLock()  # held by who has the turn
        self._inside: set[int] = set()  # threads that have a turn, or wait for one

    def check(self) -> None:
        """RequestError once it is closed."""
        if self._closed:
            raise RequestError("this engine is closed")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for a turn, and has it.

        RequestError where this engine is closed by then, or this thread has a turn, or waits for one, already.
        """
        self._check_process()
        self.check()
        if threading.get_ident() in self._inside:  # a signal's handler, a finaliser
            raise RequestError("this thread is in the middle of another call to this engine, wanted that to end first")
        try:
            with self._hold():
                self.check()
                yield
        finally:
            self._end_those()

    def close(self, let_go: Callable[[], None]) -> None:
        """Refuses all turns from now on and calls `let_go`, after the turn that is under way; waits for that if it can."""
        self._closed = True
        self._ends.append(let_go)
        if threading.get_ident() not in self._inside and not self._child_of_a_call:
            with self._hold():
                self._call_ends()

    def later(self, end: Callable[[], None]) -> None:
        """Calls `end` in a turn: now if nobody has one, else after that. Waits for nobody: it runs in finalisers."""
        self._ends.append(end)
        self._end_those()

    @contextmanager
    def _hold(self, wait: bool = True) -> Iterator[bool]:
        """The turn, or without `wait` whether it was free. Not within another.

        Ctrl-C may come between any two steps of Python, but not between the end of this block and the first call of
        `finally`, which is the lock's own: nothing may come before it.
        """
        me = threading.get_ident()
        try:
            self._inside.add(me)
            if wait:
                with self._door:
                    self._taken.acquire()
                yield True
            else:
                yield self._taken.acquire(blocking=False)
        finally:
            try:  # contextlib's way begins with calls of Python
                self._taken.release()
            except RuntimeError:
                pass  # it was not taken: Ctrl-C came while this waited, or it was not free
            finally:
                self._inside.discard(me)

    def _end_those(self) -> None:
        # Once more after each release: what came while the lock was taken has left it to who had it.
        while self._ends and threading.get_ident() not in self._inside:
            with self._hold(wait=False) as free:
                if not free:
                    return
                self._call_ends()

    def _call_ends(self) -> None:
        with deferred():  # what is half cleaned up would stay so
            while self._ends:
                self._ends.popleft()()

    def _check_process(self) -> None:
        if not self._forked:
            return
        forks.check()
        if self._child_of_a_call:
            raise BackendError(
                "this process was made by fork in the middle of a call to this engine: start it by multiprocessing's "
                "'spawn', and load the model there"
            )


_ALL: weakref.WeakSet[Turns] = weakref.WeakSet()  # those whose locks a forked child has to make anew


def _in_child() -> None:
    """A child made by fork has one thread, and copies of locks that threads of its parent may have held."""
    for turns in list(_ALL):
        turns._forked = True
        turns._child_of_a_call = turns._child_of_a_call or bool(turns._inside)
        turns._renew()


os.register_at_fork(after_in_child=_in_child)
