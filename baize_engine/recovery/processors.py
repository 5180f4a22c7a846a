"""As many threads for what takes a processor's time as there are processors."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any


class _Call(Future[Any]):
    """A call to be made by another thread, and what it returned or raised."""

    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self._call, self._arguments = call, arguments

    def make(self) -> None:
        with self:
            self.set_result(self._call(*self._arguments))

    def __enter__(self) -> _Call:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if error is not None:
            self.set_exception(error)  # raised where the result is waited for
        return True


class Processors:
    """A context manager: makes calls for `workers` threads that else read and write, as many at once as there are processors.

    Threads that do both come to wait for the disk all at once and then for the processors all at once, and of two processors
    the system was seen to leave one idle a third of the time; a semaphore about the calls did not help. Where each worker can
    have a processor of its own, it makes its calls itself. A container's share of processors' time is not looked at.
    """

    def __init__(self, workers: int) -> None:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        # no thread pool: those take no calls once the main thread has ended, and recovery may run on another
        self._threads = [
            threading.Thread(target=self._serve, name=f"baize-compute_{number}")
            for number in range(count if count < workers else 0)
        ]

    def __enter__(self) -> Processors:
        for number, thread in enumerate(self._threads):
            try:
                thread.start()
            except BaseException:  # the system has no thread to give
                self._threads = self._threads[:number]
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        for _thread in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What `call(*arguments)` returns or raises, made once a processor is free."""
        if not self._threads:
            return call(*arguments)
        waiting = _Call(call, arguments)
        self._calls.put(waiting)
        try:
            return waiting.result()
        finally:
            del waiting  # an error that it holds holds this frame

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call.make()
            del call  # it would keep what is nobody's any more until the next comes
