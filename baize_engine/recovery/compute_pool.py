"""ComputePool: as many threads for CPU-bound work as there are processors."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class ComputePool:
    """A context manager that makes calls for `workers` threads, as many at once as there are processors.

    The workers then only read and write. Threads that do both come to wait for the disk all at once and then for the
    processors all at once; with two processors the system was seen to leave one idle a third of the time, and a semaphore
    around the calls did not help. Where each worker can have a processor of its own, it makes its calls itself. The CPU
    share of a container is not looked at.
    """

    def __init__(self, workers: int) -> None:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._lock, self._ended = threading.Lock(), False
        # no ThreadPoolExecutor: it takes no calls once the main thread has ended, and recovery may run on another
        self._threads = [
            threading.Thread(target=self._serve, name=f"baize-compute_{number}")
            for number in range(count if count < workers else 0)
        ]

    def __enter__(self) -> ComputePool:
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

    def run(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """What `function(*arguments)` returns or raises, called once a processor is free. RuntimeError after the pool's end."""
        if not self._threads:
            return function(*arguments, **named)
        future = Future[T]()
        with self._lock:
            if self._ended:
                raise RuntimeError("the compute pool has ended: it takes no more calls")
            self._calls.put((partial(function, *arguments, **named), future))
        try:
            return future.result()
        finally:
            del future  # an error that it holds refers to this frame, and through it to the buffers

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  raised where the result is awaited
                future.set_exception(error)
            del call, function, future  # else they would live, with the arguments, until the next call comes
        self._calls.put(None)  # for the other threads
