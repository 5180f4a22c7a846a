"""A thread that finds a rank that died, hangs or never comes, and ends this process with the others. Does not know groups.

Processes of this host are seen at once when they end (pidfd), those of others by their beats in the store. Who finds it
first puts it into the store as the verdict, which every rank follows: one of them prints it, all end by os._exit, since their
main threads may wait in C++ for ranks that are gone.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

from baize_engine.distributed.member import Member
from baize_engine.distributed.pulse import PERIOD, Pulse
from baize_engine.distributed.signals import Signals
from baize_engine.distributed.store import GONE, RunStore
from baize_engine.distributed.verdict import Verdict
from baize_engine.distributed.world import World

TICK = 0.25  # seconds between two looks at the clock
SILENCE = 6.0  # seconds without a beat after which a rank of another host is dead
SILENCE_HERE = 30.0  # of this host: it hangs or was stopped; if it had died, its pidfd would have told
ORDERLY = 2.0  # seconds that a rank's main thread gets to end by itself after the run has ended in order
SETTLING = 0.2  # seconds in which what killed one process may kill others, or send SIGTERM
CLEAN_UP = 5.0  # seconds that rank 0's own handler of SIGTERM gets
READERS = 3.0  # seconds that the store's host waits for the others to read the verdict
WORD = 1.0  # seconds after which another rank prints the verdict in the place of the lowest
ENDING = 6.0  # seconds that all of this may take
TERMINATED = 143  # as a shell has it: 128 + SIGTERM


class Watch:
    """Begins at once. `arrived` is set when all ranks have entered the store."""

    def __init__(self, world: World, store: RunStore, limit: float) -> None:
        """`store`: a connection for the threads of the watch alone. `limit`: seconds that ranks may take to enter."""
        self.arrived = threading.Event()
        self.me = Member.of_this_process(world.rank)
        self._world, self._store = world, store
        self._others = [rank for rank in range(world.size) if rank != world.rank]
        self._limit, self._until = limit, time.monotonic() + limit
        self._ended: dict[Member, str] = {}  # of this host, and how
        self._pidfds: dict[int, Member] = {}
        self._seen: set[int] = set()
        self._left = threading.Event()
        self._end_by: float | None = None  # when a program's own handler of SIGTERM has had its time
        self._looked = self._listening = time.monotonic()  # when it last did; from when on it may judge who is silent
        self._signals = Signals(world.rank)
        self._poll = select.poll()
        self._poll.register(self._signals, select.POLLIN)
        store.enter(self.me)
        self._pulse = Pulse(store, self._others, self._signals.wake)
        self._thread = threading.Thread(target=self._run, name="baize-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch, because this rank leaves in order."""
        self._left.set()
        self._pulse.stop()
        self._signals.wake()
        self._thread.join(ENDING)
        self._signals.release()

    def post(self, verdict: Verdict) -> Verdict:
        """Make this the verdict unless there is one already. Returns the one that holds."""
        return self._store.post(verdict)

    def wait_for_the_end(self) -> None:
        """Waits for the watch to end this process, which it does if it finds a reason."""
        time.sleep(SILENCE + 2 * PERIOD)

    def _run(self) -> None:
        while not self._left.is_set():
            self._look(TICK)
            if (verdict := self._pulse.verdict) is not None:
                self._follow(verdict)
                return
            if self._pulse.lost or self._host_ended():
                self._end_without_store()
            if (found := self._judge()) is not None:
                self._follow(self._posted(found))
                return

    def _look(self, seconds: float) -> None:
        """Take in what has happened; wait this long at most if nothing has."""
        for number, _ in self._poll.poll(seconds * 1000):
            if number in self._pidfds:
                member = self._pidfds.pop(number)
                self._ended[member] = member.how_it_ended(number)
                self._poll.unregister(number)
                os.close(number)
        self._signals.read()
        for member in self._pulse.members:
            if member.rank in self._seen:
                continue
            self._seen.add(member.rank)
            try:
                pidfd = member.pidfd()
            except ProcessLookupError:
                self._ended[member] = "ended"
                continue
            if pidfd is not None:
                self._pidfds[pidfd] = member
                self._poll.register(pidfd, select.POLLIN)
        if len(self._seen) == len(self._others):
            self.arrived.set()

    def _judge(self) -> Verdict | None:
        if self._signals.terminated:
            self._look(0)  # whose death may be why SIGTERM came
        if self._ended:
            return Verdict(self._deaths(), dead=[member.rank for member in self._ended])
        now = time.monotonic()
        if self._signals.terminated:
            if self._end_by is None:
                handled = self._world.rank == 0 and self._signals.program_handles_sigterm()
                self._end_by = now + (CLEAN_UP if handled else SETTLING)
            if now >= self._end_by:
                return Verdict(f"{self.me} was terminated", terminated=True)
        if (silent := self._silent(now)) is not None:
            return silent
        missing = [rank for rank in self._others if rank not in self._seen]
        if missing and now > self._until:
            who = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
            return Verdict(f"{who} did not join within {self._limit:g} s", dead=missing)
        return None

    def _silent(self, now: float) -> Verdict | None:
        looked, self._looked = self._looked, now
        if now - looked > 4 * TICK:  # this process stood still and has not heard yet who goes on
            self._listening = now + 4 * PERIOD
        if now < self._listening:
            return None
        if now - self._pulse.answered > SILENCE:
            self._end_without_store()
        for member in self._pulse.members:
            silence = now - self._pulse.heard[member.rank]
            if silence > (SILENCE_HERE if member in self._pidfds.values() else SILENCE):
                return Verdict(f"{member} stopped answering {silence:.0f} s ago", dead=[member.rank])
        return None

    def _host_ended(self) -> bool:
        """Whether the store ended with rank 0, on this host."""
        return not self._world.agent_store and any(member.rank == 0 for member in self._ended)

    def _deaths(self) -> str:
        return "; ".join(
            f"{member} {how}" for member, how in sorted(self._ended.items(), key=lambda item: item[0].rank)
        )

    def _posted(self, verdict: Verdict) -> Verdict:
        try:
            return self.post(verdict)
        except GONE:
            self._end_without_store()

    def _follow(self, verdict: Verdict) -> None:
        """End as the verdict says; returns only if the main thread ends the process in order."""
        if verdict.in_order:
            self._tell_that_read()
            if not self._left.wait(0 if self._signals.terminated else ORDERLY):
                os._exit(verdict.code)
            return
        ending = threading.Thread(target=self._end, args=(verdict,), name="baize-end", daemon=True)
        try:
            ending.start()
            ending.join(ENDING)  # a store that does not answer cannot keep this process
        except RuntimeError:  # Python 3.12.0 and 3.12.1 start no thread once the program has ended
            self._end(verdict)
        os._exit(self._code(verdict))

    def _end(self, verdict: Verdict) -> None:
        try:
            if self._takes_word(verdict) and not (verdict.terminated and self._signals.terminated):
                self._print(verdict.text)
            self._tell_that_read()
            _flush()
            if self._world.hosts_store:
                gone = {*verdict.dead, *(member.rank for member in self._ended)}
                self._store.wait_for_readers([rank for rank in self._seen if rank not in gone], READERS)
        except GONE:  # after the verdict: the store's host has ended, by it or by itself
            self._end_without_store(verdict)
        os._exit(self._code(verdict))

    def _takes_word(self, verdict: Verdict) -> bool:
        """Whether this rank prints: the lowest that can, or the first to see that none of those before it does."""
        before = sum(rank not in verdict.dead for rank in range(self._world.rank))
        if before:
            until = time.monotonic() + WORD + 0.1 * before
            while time.monotonic() < until:
                if self._store.word_taken():
                    return False
                self._look(0.05)
        elif verdict.terminated:
            self._look_for_sigterm(0.5)
        return self._store.take_word()

    def _look_for_sigterm(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._signals.terminated and time.monotonic() < until:
            self._look(0.05)

    def _tell_that_read(self) -> None:
        try:
            self._store.has_read()
        except GONE:
            return  # its host has ended and waits for nobody

    def _code(self, verdict: Verdict) -> int:
        return TERMINATED if verdict.terminated and self._signals.terminated else verdict.code

    def _end_without_store(self, verdict: Verdict | None = None) -> NoReturn:
        """The store's host is gone, and with it every way to agree: the lowest rank that this one does not know dead prints."""
        self._pulse.stop()
        self._look_for_sigterm(SETTLING)  # and for processes that ended with it
        dead = {member.rank for member in self._ended} | {*(verdict.dead if verdict else [])}
        if not self._world.agent_store:
            dead.add(0)
        text = verdict.text if verdict else self._deaths()
        if not text:
            whose = "torchrun's agent has" if self._world.agent_store else "rank 0 has"
            text = f"the rendezvous store at {self._store.address}, which {whose}, is gone"
        lowest = min(rank for rank in range(self._world.size) if rank not in dead)
        if lowest == self._world.rank and not (self._signals.terminated and not self._ended):
            self._print(text)
        _flush()
        os._exit(TERMINATED if self._signals.terminated and not self._ended else 1)

    def _print(self, text: str) -> None:
        os.write(2, f"baize: {text}\n".encode())


def _flush() -> None:
    """What the program has printed, before os._exit forgets it."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):  # nobody reads it any more, or the program has closed it
                stream.flush()
