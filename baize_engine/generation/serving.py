"""Serving: calls from any threads and event loops over one Loop. A thread that waits for output steps the loop for all.

Each call has an inbox. A thread that finds its own empty takes a turn (turns.py), adds new calls to the loop, steps it, and
puts the outputs into the inboxes. Nothing runs unless a caller waits: an iterator whose reader is idle advances only while
others step. For coroutines, a background thread steps as long as any of them waits. Knows token ids and pieces of text; no
tokenizer.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator

from baize_engine.errors import BackendError, BaizeError
from baize_engine.generation.call import Call, Waiter
from baize_engine.generation.loop import Loop, Output
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.turns import Turns
from baize_engine.interrupts import deferred


class Serving:
    """Gives any number of threads access to `loop`. After `close`, every call is refused, and `on_close` is called."""

    def __init__(self, loop: Loop, on_close: Callable[[], None] = lambda: None) -> None:
        self._loop: Loop | None = loop
        self._on_close = on_close
        self._turns = Turns()
        self._process = os.getpid()
        self._arriving: deque[Call] = deque()  # calls made since the last step
        self._running: set[Call] = set()  # unfinished calls that are in the loop
        self._awaited: set[Call] = set()  # unfinished calls of coroutines
        self._driver: threading.Thread | None = None

    @property
    def loop(self) -> Loop:
        """The loop, for a thread that has a turn; its `usage` for any. RequestError once this is closed."""
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
        thread. An error of a step that is no single sequence's ends all calls in progress, after the outputs made before it.
        """
        call, left = Call(sequences), len(sequences)
        try:
            self._turns.check()
            self._check_process()
            if sequences:
                self._arriving.append(call)
            while left:
                self._turns.check()
                while not call.inbox:
                    self._wait(call)
                output = call.inbox.popleft()
                left -= output[2]
                yield output
        finally:
            self._leave(call, left)

    async def arun(self, sequences: list[Sequence]) -> AsyncGenerator[Output, None]:
        """`run` for a coroutine. Cancelling it aborts the unfinished sequences."""
        waiter = Waiter(asyncio.Event(), asyncio.get_running_loop(), threading.current_thread())
        call, left = Call(sequences, waiter), len(sequences)
        try:
            self._turns.check()
            self._check_process()
            if sequences:
                self._arriving.append(call)
                self._awaited.add(call)
                self._start_driver()
            while left:
                waiter.event.clear()
                self._turns.check()
                call.check()
                if not call.inbox:
                    await waiter.event.wait()
                    continue
                output = call.inbox.popleft()
                left -= output[2]
                yield output
        finally:
            self._leave(call, left)

    def _leave(self, call: Call, left: int) -> None:
        """Ends a call whose reader leaves before it read the last outputs of `left` sequences."""
        self._awaited.discard(call)
        if left:
            self._abort_later(call)
        call.failure = call.trace = None

    def _wait(self, call: Call) -> None:
        """Takes a turn for the thread that reads `call`, and steps, unless another thread has made output for it meanwhile."""
        self._check_process()
        with self._turns.turn():
            if not call.inbox and call.failure is None:
                self._step(call)
        call.check()

    def _check_process(self) -> None:
        """Ends, in a forked process, the calls of its parent, where they continue."""
        if self._process == os.getpid():
            return
        with self._turns.turn():
            if self._process != os.getpid():
                self._end_all(
                    BackendError("this call was made before this process was forked; it continues in the parent only")
                )
                self._process = os.getpid()

    def _step(self, own: Call | None) -> None:
        """Takes one step for all calls. Needs the turn. An error becomes the failure of all calls in progress.

        own: the call whose reader takes the step. What a signal's handler raises waits for the end of the step, because half
        a step would damage other calls.
        """
        with deferred():
            loop = self.loop
            try:
                while self._arriving:
                    self._admit(loop, self._arriving[0])
                    self._arriving.popleft()
                self._deliver(loop.step())
            except BaseException as error:  # noqa: BLE001  raised to the readers
                self._fail(error)
                if own is not None:
                    own.set_exception(error)

    def _admit(self, loop: Loop, call: Call) -> None:
        self._running.add(call)
        for sequence in call.sequences:
            sequence.call = call
        loop.add(call.sequences)

    def _deliver(self, outputs: list[Output]) -> None:
        awaited: set[Call] = set()
        for output in outputs:
            sequence, _, last = output
            call = sequence.call
            if call is None:
                raise ValueError("a sequence of no call is in the loop")
            call.inbox.append(output)
            if last:
                sequence.call = None
                call.unfinished -= 1
                if not call.unfinished:
                    self._running.discard(call)
                    self._awaited.discard(call)
            if call.waiter is not None:
                awaited.add(call)
        if awaited:
            self._wake(awaited)

    def _fail(self, error: BaseException) -> None:
        """Ends all calls in progress with the error of a step, which may have left anything half done."""
        shared = error
        if not isinstance(error, Exception):  # KeyboardInterrupt is for the thread in which it was raised
            shared = BackendError(f"a step for several calls was ended by {type(error).__name__} in one of them")
            shared.__cause__ = error
        self._end_all(shared, arriving=False)

    def _end_all(self, error: BaseException | None, arriving: bool = True) -> None:
        """Aborts all calls in progress. Needs the turn.

        error: becomes their failure, unless it is None. arriving: whether calls that are not in the loop yet end, too.
        """
        try:
            if self._loop is not None:
                self._loop.fail()
        finally:  # readers also learn of a device that no longer works
            while self._arriving and (arriving or self._arriving[0] in self._running):
                self._running.add(self._arriving.popleft())
            calls = set(self._running)
            self._running.clear()
            for call in calls:
                call.leave()
                self._awaited.discard(call)
                if error is not None:
                    call.set_exception(error)
            self._wake(calls)

    def _wake(self, calls: set[Call]) -> None:
        """Wakes coroutines that have new output, with one call to each event loop."""
        of_loop: dict[asyncio.AbstractEventLoop, list[Call]] = {}
        for call in calls:
            if call.waiter is not None:
                of_loop.setdefault(call.waiter.event_loop, []).append(call)
        for event_loop, its_calls in of_loop.items():
            try:
                event_loop.call_soon_threadsafe(
                    _set, [call.waiter.event for call in its_calls if call.waiter is not None]
                )
            except RuntimeError:  # the event loop was closed, so that its coroutines never run again
                for call in its_calls:
                    self._abort_later(call)

    def _abort_later(self, call: Call) -> None:
        """`_abort` for a thread that may have no turn."""
        self._turns.later(lambda: self._abort(call))

    def _abort(self, call: Call) -> None:
        """Ends a call that is no longer read. Needs the turn."""
        self._awaited.discard(call)
        self._running.discard(call)
        if call in self._arriving:
            self._arriving.remove(call)
        if self._loop is not None:
            for sequence in call.sequences:
                self._loop.abort(sequence)
        call.leave()

    def _let_go(self) -> None:
        """Ends all calls and releases the loop. Runs in the last turn."""
        self._end_all(None)
        self._loop = None
        self._on_close()

    def _start_driver(self) -> None:
        """Starts the thread that steps for coroutines, unless it is running. A second one would do no harm."""
        if self._driver is None or not self._driver.is_alive():
            self._driver = threading.Thread(target=self._drive, name="baize-async")
            self._driver.start()

    def _is_awaited(self) -> bool:
        """Whether a coroutine waits for output that can go on when it comes."""
        return any(call.waiter is not None and call.waiter.goes_on() for call in list(self._awaited))

    def _drive(self) -> None:
        while True:
            while self._is_awaited():
                try:
                    with self._turns.turn():
                        if self._awaited:
                            self._step(None)
                except BaizeError as error:  # this was closed
                    for call in list(self._awaited):
                        call.set_exception(error)
                        self._awaited.discard(call)
                        self._wake({call})
            self._driver = None
            if not self._is_awaited():
                break
            self._driver = threading.current_thread()  # a call that arrived in between may rely on this thread
        self._turns.later(self._pause)

    def _pause(self) -> None:
        """Lets event loops that do not run now start the driver when they run again; ends the calls of closed ones."""
        for call in list(self._awaited):
            if call.waiter is not None:
                try:
                    call.waiter.event_loop.call_soon_threadsafe(self._start_driver)
                except RuntimeError:
                    self._abort(call)


def _set(events: list[asyncio.Event]) -> None:
    for event in events:
        event.set()
