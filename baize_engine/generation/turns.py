"""Turns: decides which thread may use an engine's loop. Does not know what it does there.

A step writes to the decoder's buffers, the block pool and the scheduler's lists, so two steps must never overlap. A thread
takes a turn for each step. Freeing what an abandoned call held also takes a turn, because the garbage collector may run in
any thread, in the middle of another call.
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
    """A lock that threads take in turns, roughly in the order in which they ask. After `close` all turns are refused."""

    def __init__(self) -> None:
        self._renew()
        self._closed = False
        self._child_of_a_call = False  # made by fork while a call was under way
        self._forked = False
        self._pending: deque[Callable[[], None]] = deque()  # calls to make in a turn
        _ALL.add(self)

    def _renew(self) -> None:
        self._door = threading.Lock()  # held by the next thread, so that one that just had a turn queues behind it
        self._taken = threading.RLock()  # held by the thread that has the turn
        self._inside: set[int] = set()  # threads that have a turn or wait for one

    def check(self) -> None:
        """RequestError once this is closed."""
        if self._closed:
            raise RequestError("this engine is closed")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for a turn and holds it.

        RequestError if this is closed by then, or if this thread already has a turn or waits for one. BackendError in a
        forked process in which the engine cannot work.
        """
        self._check_process()
        self.check()
        if threading.get_ident() in self._inside:  # a signal's handler, a finaliser
            raise RequestError("this thread is in the middle of another call to this engine, which must end first")
        try:
            with self._hold():
                self.check()
                yield
        finally:
            self._run_pending()

    def close(self, let_go: Callable[[], None]) -> None:
        """Refuses all further turns and calls `let_go` after the current one; waits for that unless this thread holds it."""
        self._closed = True
        self._pending.append(let_go)
        if threading.get_ident() not in self._inside and not self._child_of_a_call:
            with self._hold():
                self._call_pending()
            self._run_pending()  # what came between the last of these calls and the release

    def later(self, end: Callable[[], None]) -> None:
        """Calls `end` in a turn: now if no thread has one, else after the current one. Never waits; finalisers use it."""
        self._pending.append(end)
        self._run_pending()

    @contextmanager
    def _hold(self, wait: bool = True) -> Iterator[bool]:
        """Takes the lock, or without `wait` tries to, and yields whether it was taken. Not reentrant.

        Ctrl-C may arrive between any two steps of the interpreter, except between the end of this block and the first call in
        `finally`. That call must be the lock's own release.
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
            try:  # contextlib.suppress would first call Python code
                self._taken.release()
            except RuntimeError:
                pass  # not taken: Ctrl-C arrived during the wait, or another thread has it
            finally:
                self._inside.discard(me)

    def _run_pending(self) -> None:
        # Checked again after each release: calls that arrived meanwhile were left to the thread that held the lock.
        while self._pending and threading.get_ident() not in self._inside:
            with self._hold(wait=False) as free:
                if not free:
                    return
                self._call_pending()

    def _call_pending(self) -> None:
        with deferred():  # Ctrl-C must not leave a cleanup half done
            while self._pending:
                self._pending.popleft()()

    def _check_process(self) -> None:
        if not self._forked:
            return
        forks.usable_threads()
        if self._child_of_a_call:
            raise BackendError(
                "this process was forked in the middle of a call to this engine: start it with multiprocessing's 'spawn', "
                "and load the model there"
            )


_ALL: weakref.WeakSet[Turns] = weakref.WeakSet()  # a forked child must renew their locks


def _in_child() -> None:
    """Renews the locks in a child made by fork: it has one thread, but copies of locks that other threads may have held."""
    for turns in list(_ALL):
        turns._forked = True
        turns._child_of_a_call = turns._child_of_a_call or bool(turns._inside)
        turns._renew()


os.register_at_fork(after_in_child=_in_child)
