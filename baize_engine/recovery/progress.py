"""A progress bar over bytes moved: done, rate, time left. Silent without a terminal."""

from __future__ import annotations

import threading

from tqdm import tqdm


class Progress:
    """A context manager; `add` may be called from several threads."""

    def __init__(self, total: int, label: str, shown: bool) -> None:
        self._lock = threading.Lock()
        # disable=None: tqdm hides itself where stderr is no terminal, so that logs stay clean
        self._bar = tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=None if shown else True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, nbytes: int) -> None:
        """Counts `nbytes` more as read or written."""
        with self._lock:
            self._bar.update(nbytes)
