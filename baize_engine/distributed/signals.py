"""SIGTERM and SIGINT of a rank: seen by the watch's thread while the main thread waits in C++ for the other ranks."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


class Signals:
    """Until `release`, each signal writes its number to `fileno`, as a byte. Outside the main thread nothing changes."""

    def __init__(self, rank: int) -> None:
        """Rank 0 decides on SIGINT, which a terminal sends to all, so that the others ignore it.

        A handler of SIGTERM that the program has stays on rank 0, which may have to clean up.
        """
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        self.terminated = False
        self._released = False
        self._taken = threading.current_thread() is threading.main_thread()
        if not self._taken:
            return
        if rank > 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if rank > 0 or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._leave_it_to_the_watch)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self.release)  # the pipe is the parent's

    def fileno(self) -> int:
        """For poll and select."""
        return self._reading

    def wake(self) -> None:
        """Make `fileno` readable, without a signal."""
        try:
            os.write(self._writing, b"\0")
        except BlockingIOError:  # full, and so readable
            return

    def read(self) -> None:
        """Empty the pipe; `terminated` says from now on whether SIGTERM has come."""
        try:
            while numbers := os.read(self._reading, 4096):
                self.terminated |= signal.SIGTERM in numbers
        except BlockingIOError:
            return

    def program_handles_sigterm(self) -> bool:
        """Whether a handler of the program's own will end the process."""
        return signal.getsignal(signal.SIGTERM) not in (self._leave_it_to_the_watch, signal.SIG_IGN, signal.SIG_DFL)

    def release(self) -> None:
        """Put back what was before, where it was not replaced since; outside the main thread as soon as a signal comes."""
        self._released = True
        if not self._taken or threading.current_thread() is not threading.main_thread():
            return
        self._taken = False
        if (now := signal.set_wakeup_fd(self._wakeup_before)) != self._writing:
            signal.set_wakeup_fd(now)
        if signal.getsignal(signal.SIGTERM) == self._leave_it_to_the_watch:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _leave_it_to_the_watch(self, number: int, frame: FrameType | None) -> None:
        """The byte in the pipe has told it already, unless the program has replaced the wake-up file, as asyncio does."""
        if self._released:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.terminated = True
        self.wake()
