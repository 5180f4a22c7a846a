"""Calls: what was made before an error is read before it, and what a call leaves behind."""

from __future__ import annotations

import asyncio
import threading
import traceback

import pytest

from baize_engine.generation.call import Call, Waiter
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sequence import Sequence


def call() -> Call:
    sequence = Sequence([1, 5], SamplingParams(), 4)
    sequence.call = made = Call([sequence])
    made.inbox.append((sequence, "a", False))
    return made


def test_the_failure_is_raised_once_the_inbox_is_empty() -> None:
    made, error = call(), MemoryError("no room")
    made.check()
    made.set_exception(error)
    made.check()
    made.inbox.clear()
    with pytest.raises(MemoryError) as failure:
        made.check()
    assert failure.value is error


def test_each_reader_gets_the_traceback_of_the_failure_and_its_own() -> None:
    made, other, lengths = call(), call(), []
    try:
        raise MemoryError("no room")
    except MemoryError as error:
        made.set_exception(error)
        other.set_exception(error)
    for reader in (made, other, made):
        reader.inbox.clear()
        with pytest.raises(MemoryError) as failure:
            reader.check()
        lengths.append(len(traceback.extract_tb(failure.tb)))
    assert lengths == [3, 3, 3]


def test_a_call_that_is_left_refers_to_no_error_and_no_sequence_to_it() -> None:
    made = call()
    made.set_exception(MemoryError("no room"))
    made.leave()
    assert (made.failure, made.trace, made.sequences[0].call) == (None, None, None)


def test_coroutines_of_a_daemon_thread_do_not_keep_an_exiting_process() -> None:
    class Exiting(threading.Thread):
        """The main thread once it has ended."""

    async def waits(daemon: bool) -> list[bool]:
        waiter = Waiter(asyncio.Event(), asyncio.get_running_loop(), threading.Thread(daemon=daemon))
        found = [waiter.goes_on()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading, "main_thread", Exiting)
            return [*found, waiter.goes_on()]

    assert asyncio.run(waits(daemon=True)) == [True, False]
    assert asyncio.run(waits(daemon=False)) == [True, True]
