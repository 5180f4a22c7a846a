"""Serving: many calls, of any threads and event loops, over one Loop. Whoever waits for output steps the loop for all.

Each call has an inbox. A thread that finds its own empty takes a turn (turns.py), puts new calls into the loop, steps it, and
hands the outputs to the inboxes. Nothing runs where nobody waits: an iterator whose reader is idle goes on as others step. For
coroutines a thread steps as long as any of them waits. Knows token ids and pieces of text; no tokenizer.
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
    """A step raised `error`."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(eq=False, slots=True)
class Call:
    """The sequences of one call, and its inbox: outputs that its reader has not taken yet.

    waiter: of a coroutine, set when there is something new; to be set in its event loop.
    """

    sequences: list[Sequence]
    inbox: deque[Output] = field(default_factory=deque)
    unfinished: int = 0
    failure: BaseException | None = None  # ended all calls that were under way
    waiter: asyncio.Event | None = None
    event_loop: asyncio.AbstractEventLoop | None = None


class Serving:
    """The way into `loop` for any number of threads. After `close`, everything is refused."""

    def __init__(self, loop: Loop) -> None:
        self._loop: Loop | None = loop
        self._turns = Turns()
        self._arriving: deque[Call] = deque()  # asked for since the last step
        self._awaited: set[Call] = set()  # unfinished calls of coroutines
        self._driver: threading.Thread | None = None

    @property
    def loop(self) -> Loop:
        """The loop, for whoever has a turn; RequestError once this is closed."""
        self._turns.check()
        if self._loop is None:
            raise ValueError("the loop is gone, and nobody has closed it")
        return self._loop

    def check(self) -> None:
        """RequestError once this is closed."""
        self._turns.check()

    def close(self) -> None:
        """Lets go of the loop. Calls that are under way end with RequestError, in other threads at their next output."""
        self._turns.close(self._let_go)

    def run(self, sequences: list[Sequence]) -> Generator[Output, None, None]:
        """The outputs of the sequences as they come, those of each in their order, until all have finished.

        Leaving the iterator aborts those that have not. RequestError once this is closed, or from within another call of
        this thread. What a step raises that is no sequence's own error ends all calls under way.
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
        """`run` for a coroutine, which may be cancelled."""
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
        """A turn of the thread that reads `call`: a step, unless others have stepped for it meanwhile."""
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
        """In a turn: one step for all. StepFailed: by then its error is the failure of all calls that were under way.

        Ctrl-C waits for the end of the step: half a step would harm other calls.
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
        """What a step left half done is not known, so that all that is under way ends with its error."""
        if not isinstance(error, Exception):  # KeyboardInterrupt is for the thread that it came in
            told = BackendError(f"a step for several calls was ended by {type(error).__name__} in one of them")
            told.__cause__, error = error, told
        calls = [sequence.call for sequence in loop.fail() if sequence.call is not None]
        for call in calls:
            call.failure = error
        self._wake({call for call in calls if call.waiter is not None})

    def _wake(self, calls: set[Call]) -> None:
        """Tells coroutines that there is something new, with one call to each event loop."""
        self._awaited -= {call for call in calls if not call.unfinished or call.failure is not None}
        of_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
        for call in calls:
            if call.event_loop is not None and call.waiter is not None:
                of_loop.setdefault(call.event_loop, []).append(call.waiter)
        for event_loop, waiters in of_loop.items():
            try:
                event_loop.call_soon_threadsafe(_set, waiters)
            except RuntimeError:  # it was closed, and nobody can read any more
                for call in [call for call in calls if call.event_loop is event_loop]:
                    self._abort(call)

    def _abort(self, call: Call) -> None:
        """In a turn: nobody reads this call any more."""
        self._awaited.discard(call)
        if call in self._arriving:
            self._arriving.remove(call)
        if self._loop is not None:
            for sequence in call.sequences:
                self._loop.abort(sequence)

    def _let_go(self) -> None:
        """In the last turn."""
        if self._loop is not None:
            self._loop.fail()
        self._loop = None
        self._wake(set(self._awaited))
        self._awaited.clear()

    def _start_driver(self) -> None:
        """A thread that steps for coroutines, unless there is one. Two would do no harm."""
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
                    continue  # and all whom it concerns have been told
                except BaizeError as error:  # this was closed
                    for call in list(self._awaited):
                        call.failure = error
                    self._wake(set(self._awaited))
            self._driver = None
            if not self._awaited:
                return
            self._driver = threading.current_thread()  # a call that came in between may count on this thread


def _set(waiters: list[asyncio.Event]) -> None:
    for waiter in waiters:
        waiter.set()
