"""As many threads for what takes a processor's time as there are processors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

Compute = Callable[
    ..., Any
]  # calls its first argument with the others once a processor is free, and waits for the result


@contextmanager
def processors(workers: int) -> Iterator[Compute]:
    """For the calls of `workers` threads, which else read and write.

    Threads that do both come to wait for the disk all at once and then for the processors all at once, and of two processors
    the system was seen to leave one idle a third of the time. Where each worker can have a processor of its own, it calls
    for itself.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count >= workers:
        yield lambda call, *arguments: call(*arguments)
        return
    with ThreadPoolExecutor(count, thread_name_prefix="baize-compute") as pool:
        yield lambda call, *arguments: pool.submit(call, *arguments).result()
