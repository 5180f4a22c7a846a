"""As many threads for what takes a processor's time as there are processors."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any


class _Call(Future[Any]):
    """A call to be made by another thread, and what it returned or raised. As a context manager it takes what is raised."""

    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.call, self.arguments = call, arguments

    def __enter__(self) -> _Call:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if error is not None:
            self.set_exception(error)  # raised where the result is waited for
        return True


class Processors:
    """A context manager that makes calls for `workers` threads, as many at once as there are processors.

    The workers then only read and write. Threads that do both come to wait for the disk all at once and then for the
    processors all at once, and of two processors the system was seen to leave one idle a third of the time; a semaphore about
    the calls did not help. Where each worker can have a processor of its own, it makes its calls itself. A container's share
    of processors' time is not looked at. RuntimeError for calls after its end.
    """

    def __init__(self, workers: int) -> None:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._lock, self._ended = threading.Lock(), False
        # no thread pool: those take no calls once the main thread has ended, and recovery may run on another
        self._threads = [
            threading.Thread(target=self._serve, name=f"baize-compute_{number}")
            for number in range(count if count < workers else 0)
        ]

    def __enter__(self) -> Processors:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # the system has no thread to give
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            self._calls.put(None)
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join()

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What `call(*arguments)` returns or raises, made once a processor is free."""
        if not self._threads:
            return call(*arguments)
        waiting = _Call(call, arguments)
        with self._lock:
            if self._ended:
                raise RuntimeError("a call for processors that has nobody to make it any more")
            self._calls.put(waiting)
        try:
            return waiting.result()
        finally:
            del waiting  # an error that it holds holds this frame

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            with call:
                call.set_result(call.call(*call.arguments))
            del call  # it would keep what is nobody's any more until the next comes
        self._calls.put(None)  # for the other threads
