"""Turns: who waits is next, and no turn stays taken, whatever interrupts it."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from typing import Any

import pytest
from events import Door

from baize_engine.errors import RequestError
from baize_engine.generation.turns import Turns


def test_who_waits_is_next_and_not_who_has_just_been() -> None:
    turns, order = Turns(), []

    def other() -> None:
        with turns.turn():
            order.append("other")

    with turns.turn():
        order.append("first")
        door = turns._door = Door()
        thread = threading.Thread(target=other)
        thread.start()
        door.wait()
    with turns.turn():
        order.append("first again")
    thread.join()
    assert order == ["first", "other", "first again"]


@pytest.mark.parametrize("number", range(40))
def test_ctrl_c_leaves_no_turn_taken(number: int) -> None:
    """Raised as the so manieth function of Python begins, or a generator goes on: where CPython looks for signals."""
    turns, left = Turns(), [number]

    def interrupt(frame: Any, event: str, _: object) -> Any:
        if event == "call":
            left[0] -= 1
            if left[0] != -1:
                return None
            if frame.f_lasti >= 0 and sys.version_info < (3, 11):
                # A generator goes on. What is raised here would pass by its `finally`: raise it at the next instruction.
                frame.f_trace_opcodes = True
                return interrupt
        raise KeyboardInterrupt

    def use() -> None:
        for _ in range(3):
            with turns.turn():
                turns.later(lambda: None)

    sys.settrace(interrupt)
    try:
        use()
    except KeyboardInterrupt:
        sys.settrace(None)
    finally:
        sys.settrace(None)
    gc.collect()
    had: list[bool] = []
    other = threading.Thread(target=lambda: had.append(_takes(turns)), daemon=True)
    other.start()
    other.join(30)
    assert had == [True]
    assert _takes(turns)  # nor is this thread taken for one in the middle of a call


def _takes(turns: Turns) -> bool:
    with turns.turn():
        return True


def test_close_runs_what_another_thread_leaves_to_it_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, told = Turns(), []
    call_pending = turns._call_pending

    def then_another() -> None:
        monkeypatch.setattr(turns, "_call_pending", call_pending)
        call_pending()
        other = threading.Thread(target=turns.later, args=(lambda: told.append("left"),))
        other.start()
        other.join()

    monkeypatch.setattr(turns, "_call_pending", then_another)
    turns.close(lambda: told.append("let go"))
    assert told == ["let go", "left"]


@pytest.mark.parametrize("asked", ["close", "turn"])
def test_a_handler_that_comes_while_its_thread_waits_for_a_turn(asked: str) -> None:
    turns, begun, told = Turns(), threading.Event(), []
    leave = threading.Event()

    def hold() -> None:
        with turns.turn():
            begun.set()
            leave.wait(60)

    def handler(*_: object) -> None:
        if asked == "close":
            turns.close(lambda: told.append("let go"))
        else:
            with pytest.raises(RequestError, match="in the middle of another call"):
                _takes(turns)
            told.append("refused")
        leave.set()

    worker = threading.Thread(target=hold, daemon=True)
    worker.start()
    assert begun.wait(60)
    door = turns._door = Door()
    handlers = {signal.SIGUSR1: handler, signal.SIGUSR2: lambda *_: None}
    before = {number: signal.signal(number, call) for number, call in handlers.items()}
    me = threading.get_ident()

    def send() -> None:
        door.wait()
        signal.pthread_kill(me, signal.SIGUSR1)
        while not leave.wait(0.01):  # one that comes as the thread falls asleep is seen with the next
            signal.pthread_kill(me, signal.SIGUSR2)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        if asked == "close":
            with pytest.raises(RequestError, match="this engine is closed"):
                _takes(turns)
        else:
            assert _takes(turns)
    finally:
        sender.join(60)
        for number, usual in before.items():
            signal.signal(number, usual)
    worker.join(60)
    assert told == ["let go" if asked == "close" else "refused"]
