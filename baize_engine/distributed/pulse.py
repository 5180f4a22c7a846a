"""A thread that tells the store that this rank is alive, and reads there which others are. Judges nothing.

A thread of its own, because a store that does not answer holds it up, and must not hold up the watch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from baize_engine.distributed.member import Member
from baize_engine.distributed.store import GONE, RunStore
from baize_engine.distributed.verdict import Verdict

PERIOD = 0.5  # seconds between two beats; 16 ranks ask a store 64 times a second, which takes it some milliseconds
ARRIVING = 0.02  # as long as not all ranks have come


class Pulse:
    """What it last heard, each value replaced as a whole; `news` is called after a change of more than the times."""

    def __init__(self, store: RunStore, others: list[int], news: Callable[[], None]) -> None:
        self.members: list[Member] = []  # of the other ranks that have come
        self.heard: dict[int, float] = {}  # when each of them was last heard, on time.monotonic's clock
        self.answered = time.monotonic()  # when the store last was
        self.verdict: Verdict | None = None
        self.lost = False  # whether the store is gone
        self._store, self._others, self._news = store, others, news
        self._beats: dict[int, bytes] = {}
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="baize-pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, unless it waits for a store that does not answer."""
        self._stop.set()
        self._thread.join(PERIOD)

    def _run(self) -> None:
        while not self._stop.is_set() and self.verdict is None:
            started = time.monotonic()
            try:
                self._beat()
            except GONE:
                self.lost = True
                self._news()
                return
            now = time.monotonic()
            if now - self.answered > 4 * PERIOD:  # this process stood still, or the store did: nobody could be heard
                self.heard = dict.fromkeys(self.heard, now)
            self.answered = now
            arriving = len(self.members) < len(self._others)
            self._stop.wait(max(0.0, (ARRIVING if arriving else PERIOD) - (now - started)))

    def _beat(self) -> None:
        self._number += 1
        self._store.beat(self._number)
        known = [member.rank for member in self.members]
        came = self._store.members(rank for rank in self._others if rank not in known)
        known += [member.rank for member in came]
        now = time.monotonic()
        beats = dict(zip(known, self._store.beats(known), strict=True))
        self.heard = {rank: self.heard[rank] if self._beats.get(rank) == beat else now for rank, beat in beats.items()}
        self._beats = beats
        self.members = [*self.members, *came]  # after `heard`, which the watch asks for each of them
        self.verdict = self._store.verdict()
        if came or self.verdict:
            self._news()
