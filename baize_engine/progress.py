"""Progress bars on standard error, where that is a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


Advance = Callable[[int], None]  # takes the amount that was done since its last call; called from any thread


def no_progress(amount: int) -> None:
    """An Advance for work whose progress is not shown."""


class Progress:
    """A bar over `total` units of work, of which `done` are finished. A context manager; `add` may be called from threads.

    Nothing is drawn unless `shown`, or where standard error is no terminal: logs stay clean. Of unit "B" amounts get prefixes.
    note: what else the bar shows behind the tokens; "" for nothing.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        shown: bool,
        label: str | None = None,
        done: int = 0,
        note: Callable[[], str] | None = None,
    ) -> None:
        self._lock, self._note = threading.Lock(), note
        self._tokens, self._begin = 0, time.perf_counter()
        self._bar: tqdm[Any] | None = None
        # Not tqdm(disable=True): that too starts a thread, and takes a semaphore that forked processes share. One that is
        # killed while it has it leaves all others waiting for ever. standard error may be None, or what a program put there.
        if shown and getattr(sys.stderr, "isatty", lambda: False)():
            from tqdm import tqdm  # here: it takes a tenth of a command's start

            self._bar = tqdm(total=total, initial=done, unit=unit, desc=label, unit_scale=unit == "B")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, amount: int, tokens: int = 0) -> None:
        """`amount` more units are finished, and `tokens` more tokens are made, whose number and rate the bar then shows.

        So it does the note.
        """
        if self._bar is None:
            return
        with self._lock:
            if tokens:
                self._tokens += tokens
                rate = self._tokens / (time.perf_counter() - self._begin)
                shown = [f"{self._tokens} tokens", f"{rate:.1f} tok/s", "" if self._note is None else self._note()]
                self._bar.set_postfix_str(", ".join(filter(None, shown)), refresh=False)
            self._bar.update(amount)
