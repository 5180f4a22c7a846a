"""A progress bar over bytes moved: done, rate, time left. Silent without a terminal."""

from __future__ import annotations

import threading

from baize_engine.progress import bar


class Progress:
    """A context manager; `add` may be called from several threads."""

    def __init__(self, total: int, label: str, shown: bool) -> None:
        self._lock = threading.Lock()
        self._bar = bar(shown, total=total, desc=label, unit="B", unit_scale=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, nbytes: int) -> None:
        """Counts `nbytes` more as read or written."""
        if self._bar is not None:
            with self._lock:
                self._bar.update(nbytes)
