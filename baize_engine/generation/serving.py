"""Serving: calls from any threads and event loops over one Loop. A thread that waits for output steps the loop for all.

Each call has an inbox. A thread that finds its own empty takes a turn (turns.py), adds new calls to the loop, steps it, and
puts the outputs into the inboxes. Nothing runs unless a caller waits: an iterator whose reader is idle advances only while
others step. For coroutines, a background thread steps as long as any of them waits. Knows token ids and pieces of text; no
tokenizer.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field

from baize_engine.errors import BackendError, BaizeError
from baize_engine.generation.loop import Loop, Output
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.turns import Turns
from baize_engine.interrupts import deferred


class StepFailed(Exception):
    """Carries the error that a step raised."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(eq=False, slots=True)
class Call:
    """The sequences of one call, and its inbox: outputs that the reader has not taken yet.

    waiter: for a coroutine, the event that is set, in its event loop, when there is new output.
    """

    sequences: list[Sequence]
    inbox: deque[Output] = field(default_factory=deque)
    unfinished: int = 0
    failure: BaseException | None = None  # the error of a step, which ended all calls in progress
    waiter: asyncio.Event | None = None
    event_loop: asyncio.AbstractEventLoop | None = None


class Serving:
    """Gives any number of threads access to `loop`. After `close`, every call is refused."""

    def __init__(self, loop: Loop) -> None:
        self._loop: Loop | None = loop
        self._turns = Turns()
        self._arriving: deque[Call] = deque()  # calls made since the last step
        self._awaited: set[Call] = set()  # unfinished calls of coroutines
        self._driver: threading.Thread | None = None

    @property
    def loop(self) -> Loop:
        """The loop, for a thread that has a turn. RequestError once this is closed."""
        self._turns.check()
        if self._loop is None:
            raise ValueError("the loop was released, but this was not closed")
        return self._loop

    def check(self) -> None:
        """RequestError once this is closed."""
        self._turns.check()

    def close(self) -> None:
        """Releases the loop. Calls in progress end with RequestError; those of other threads at their next output."""
        self._turns.close(self._let_go)

    def run(self, sequences: list[Sequence]) -> Generator[Output, None, None]:
        """Yields the outputs of the sequences as they are made, in order for each sequence, until all have finished.

        Leaving the iterator aborts the unfinished ones. RequestError once this is closed, or inside another call of this
        thread. An error of a step that is no single sequence's ends all calls in progress.
        """
        call, left = Call(sequences, unfinished=len(sequences)), len(sequences)
        try:
            self._turns.check()
            self._arriving.append(call)
            while left:
                self._turns.check()
                while not call.inbox:
                    self._wait(call)
                output = call.inbox.popleft()
                left -= output[2]
                yield output
        finally:
            if left:
                self._turns.later(lambda: self._abort(call))

    async def arun(self, sequences: list[Sequence]) -> AsyncGenerator[Output, None]:
        """`run` for a coroutine. Cancelling it aborts the unfinished sequences."""
        call, left = Call(sequences, unfinished=len(sequences)), len(sequences)
        call.waiter, call.event_loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            self._turns.check()
            if sequences:
                self._arriving.append(call)
                self._awaited.add(call)
                self._start_driver()
            while left:
                call.waiter.clear()
                self._turns.check()
                if call.failure is not None:
                    raise call.failure
                if not call.inbox:
                    await call.waiter.wait()
                while call.inbox:
                    output = call.inbox.popleft()
                    left -= output[2]
                    yield output
        finally:
            if left:
                self._awaited.discard(call)
                self._turns.later(lambda: self._abort(call))

    def _wait(self, call: Call) -> None:
        """Takes a turn for the thread that reads `call`, and steps, unless another thread has made output for it meanwhile."""
        error = call.failure
        try:
            with self._turns.turn():
                if not call.inbox and call.failure is None:
                    self._step()
                error = call.failure
        except StepFailed as failed:
            error = failed.error
        if error is not None:
            raise error

    def _step(self) -> None:
        """Takes one step for all calls. Needs the turn. StepFailed after its error was set as the failure of all calls.

        Ctrl-C waits for the end of the step, because half a step would damage other calls.
        """
        with deferred():
            loop = self.loop
            while self._arriving:
                call = self._arriving.popleft()
                for sequence in call.sequences:
                    sequence.call = call
                loop.add(call.sequences)
            try:
                self._deliver(loop.step())
            except BaseException as error:
                self._fail(loop, error)
                raise StepFailed(error) from error

    def _deliver(self, outputs: list[Output]) -> None:
        awaited: set[Call] = set()
        for output in outputs:
            call = output[0].call
            if call is None:
                raise ValueError("a sequence of no call is in the loop")
            call.inbox.append(output)
            call.unfinished -= output[2]
            if call.waiter is not None:
                awaited.add(call)
        if awaited:
            self._wake(awaited)

    def _fail(self, loop: Loop, error: BaseException) -> None:
        """Ends all calls in progress with the error of a step, which may have left anything half done."""
        if not isinstance(error, Exception):  # KeyboardInterrupt is for the thread in which it was raised
            shared = BackendError(f"a step for several calls was ended by {type(error).__name__} in one of them")
            shared.__cause__, error = error, shared
        calls = [sequence.call for sequence in loop.fail() if sequence.call is not None]
        for call in calls:
            call.failure = error
        self._wake({call for call in calls if call.waiter is not None})

    def _wake(self, calls: set[Call]) -> None:
        """Wakes coroutines that have new output, with one call to each event loop."""
        self._awaited -= {call for call in calls if not call.unfinished or call.failure is not None}
        of_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
        for call in calls:
            if call.event_loop is not None and call.waiter is not None:
                of_loop.setdefault(call.event_loop, []).append(call.waiter)
        for event_loop, waiters in of_loop.items():
            try:
                event_loop.call_soon_threadsafe(_set, waiters)
            except RuntimeError:  # the event loop was closed, so that its coroutines never run again
                for call in [call for call in calls if call.event_loop is event_loop]:
                    self._abort(call)

    def _abort(self, call: Call) -> None:
        """Ends a call that is no longer read. Needs the turn."""
        self._awaited.discard(call)
        if call in self._arriving:
            self._arriving.remove(call)
        if self._loop is not None:
            for sequence in call.sequences:
                self._loop.abort(sequence)

    def _let_go(self) -> None:
        """Ends all calls and releases the loop. Runs in the last turn."""
        if self._loop is not None:
            self._loop.fail()
        self._loop = None
        self._wake(set(self._awaited))
        self._awaited.clear()

    def _start_driver(self) -> None:
        """Starts the thread that steps for coroutines, unless it is running. A second one would do no harm."""
        if self._driver is None or not self._driver.is_alive():
            self._driver = threading.Thread(target=self._drive, name="baize-async")
            self._driver.start()

    def _drive(self) -> None:
        while True:
            while self._awaited:
                try:
                    with self._turns.turn():
                        if self._awaited:
                            self._step()
                except StepFailed:
                    continue  # all calls have the error already
                except BaizeError as error:  # this was closed
                    for call in list(self._awaited):
                        call.failure = error
                    self._wake(set(self._awaited))
            self._driver = None
            if not self._awaited:
                return
            self._driver = threading.current_thread()  # a call that arrived in between may rely on this thread


def _set(waiters: list[asyncio.Event]) -> None:
    for waiter in waiters:
        waiter.set()
