"""Measures this machine's memory bandwidth, the ceiling of everything that reads each weight once."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
from common import REHEARSING, measure

NBYTES = (1 if REHEARSING else 512) << 20  # no cache holds a part of 512 MiB that matters
COLUMNS = 4096  # floats of a row: several rows at a time are several streams, which some memory reads faster than one


class ReadProbe:
    """GB/s of reading NBYTES of memory, now: the best of several ways, so that no share of it is flattered.

    torch's sum of integers reads one stream a thread; BLAS, multiplying a vector with a matrix, several, on as many threads as
    there are cores whatever torch's number, so that it only counts where as many are asked for.
    """

    def __init__(self, threads: int) -> None:
        self._data = torch.ones(NBYTES // 4)
        matrix = self._data.view(-1, COLUMNS).numpy()
        left, right = np.ones(matrix.shape[0], np.float32), np.ones(COLUMNS, np.float32)
        self._ways: list[Callable[[], object]] = [self._data.view(torch.int64).sum]
        if threads == len(os.sched_getaffinity(0)):
            self._ways += [lambda: left @ matrix, lambda: matrix @ right]

    def __call__(self, runs: int = 3) -> float:
        return NBYTES / min(measure(way, runs).median for way in self._ways) / 1e9


def memory_bandwidth(threads: int) -> dict[str, float]:
    """GB/s that this machine reads, and copies (bytes read plus written) with torch, on `threads` threads."""
    before = torch.get_num_threads()
    read = ReadProbe(threads)
    torch.set_num_threads(threads)
    try:
        source = torch.ones(NBYTES // 4)
        target = torch.zeros_like(source)
        copy = measure(lambda: target.copy_(source), 7).median
        return {"read": read(7), "copy": 2 * NBYTES / copy / 1e9}
    finally:
        torch.set_num_threads(before)
