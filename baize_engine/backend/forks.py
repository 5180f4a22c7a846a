"""Whether this process may compute with several threads. A forked child may not, if its parent did.

The child inherits OpenMP's record of its thread team but not the threads, so its first computation would wait for ever. With
one thread there is no team, and a child works.
"""

from __future__ import annotations

import os

import torch

from baize_engine.errors import BackendError

_started_by: int | None = None  # the process that started a thread team: this one or an ancestor


def usable_threads() -> int:
    """The number of threads to compute with, torch's. Raises BackendError in a forked child that would hang."""
    global _started_by
    threads, process = torch.get_num_threads(), os.getpid()
    if threads > 1:
        if _started_by not in (None, process):
            raise BackendError(
                "this process was forked after its parent had computed with several threads, which a forked process does "
                "not have: start it with multiprocessing's 'spawn', or load the model with threads=1"
            )
        _started_by = process
    return threads
