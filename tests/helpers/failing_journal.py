"""Runs that fail once so many parts are noted, and what they say of what they keep."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from baize_engine.recovery.journal import Journal

KEPT = "keeps {} of {} {} that are finished: continue with --resume, or remove the folder"


def failing_after(parts: int, monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]) -> None:
    """From now on, journals note so many parts and then raise."""
    add, added, lock = Journal.add, 0, threading.Lock()

    def noting(self: Journal, name: str, record: object) -> None:
        nonlocal added
        with lock:  # several threads note what they have finished
            if added >= parts:
                raise error()
            add(self, name, record)
            added += 1

    monkeypatch.setattr(Journal, "add", noting)
