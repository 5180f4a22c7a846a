"""Call: the sequences of one call, and the outputs that its reader has not taken yet."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType

from baize_engine.generation.loop import Output
from baize_engine.generation.sequence import Sequence


@dataclass(eq=False, slots=True)
class Waiter:
    """The coroutine that reads a call.

    event: set, in its event loop, when there is new output. thread: the thread that runs the event loop.
    """

    event: asyncio.Event
    event_loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    def goes_on(self) -> bool:
        """Whether it may go on now: its event loop runs, and the interpreter is not about to end the thread."""
        return self.event_loop.is_running() and not (self.thread.daemon and not threading.main_thread().is_alive())


@dataclass(eq=False, slots=True)
class Call:
    """The sequences of one call, and its inbox: outputs that the reader has not taken yet.

    failure: the error that ended all calls in progress, with its traceback up to then. waiter: None for a thread's call.
    """

    sequences: list[Sequence]
    waiter: Waiter | None = None
    inbox: deque[Output] = field(default_factory=deque)
    unfinished: int = field(init=False)
    failure: BaseException | None = None
    trace: TracebackType | None = None

    def __post_init__(self) -> None:
        self.unfinished = len(self.sequences)

    def set_exception(self, error: BaseException) -> None:
        self.failure, self.trace = error, error.__traceback__

    def check(self) -> None:
        """Raises the failure, once all output before it was read."""
        if self.failure is not None and not self.inbox:
            raise self.failure.with_traceback(self.trace)  # each reader's frames would be added to it otherwise

    def leave(self) -> None:
        """Drops what refers back to the call. Otherwise only the garbage collector would free it and what a step held."""
        self.failure = self.trace = None
        for sequence in self.sequences:
            sequence.call = None
