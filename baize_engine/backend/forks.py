"""Whether this process may compute with several threads: a child made by fork may not, if its parent did.

It inherits the parent's account of a team of threads, OpenMP's, and not the threads: the first computation would wait for them
for ever. With one thread there is no team, and a child works.
"""

from __future__ import annotations

import os

import torch

from baize_engine.errors import BackendError

_started_by: int | None = None  # the process that made a team, this one or one that it is a copy of


def check() -> int:
    """How many threads to compute with: torch's. BackendError where they would never come."""
    global _started_by
    threads, process = torch.get_num_threads(), os.getpid()
    if threads > 1:
        if _started_by not in (None, process):
            raise BackendError(
                "this process was made by fork after its parent had computed with several threads, which a copy does not "
                "have: start it by multiprocessing's 'spawn', or load the model with threads=1"
            )
        _started_by = process
    return threads
