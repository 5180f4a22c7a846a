"""Ctrl-C waits where threads are managed, and then is what it was."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest
import tiny

from baize_engine import Engine, recover, verify
from baize_engine.checkpoint.file_io import InputFile
from baize_engine.checkpoint.writer import CheckpointWriter
from baize_engine.cli.signals import interrupted_once
from baize_engine.errors import OutputError
from baize_engine.interrupts import Check, deferred, in_threads
from baize_engine.model import weight_loader
from baize_engine.recovery import stream as streaming
from baize_engine.recovery.compute_pool import ComputePool
from baize_engine.recovery.journal import Journal


@pytest.fixture(autouse=True)
def usual_ctrl_c() -> Iterator[None]:
    """A shell's background jobs start with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_it_is_noted_and_raised_at_the_end() -> None:
    steps: list[list[BaseException]] = []

    def work() -> None:
        with deferred() as arrived:
            press()
            press()
            steps.append(list(arrived))
        steps.append([])  # not reached

    with pytest.raises(KeyboardInterrupt):
        work()
    assert [list(map(type, step)) for step in steps] == [[KeyboardInterrupt, KeyboardInterrupt]]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_threads_give_results_in_the_order_of_the_items() -> None:
    assert in_threads(lambda item, check: item * 2, range(5), 2) == [0, 2, 4, 6, 8]
    assert in_threads(lambda item, check: item, [], 2) == []


def test_threads_end_at_the_first_error() -> None:
    begun: list[int] = []
    both, failed = threading.Barrier(2, timeout=60), threading.Event()

    def work(item: int, check: Check) -> None:
        begun.append(item)
        both.wait()
        if item == 1:
            failed.set()
            raise OutputError(28, "no room")
        assert failed.wait(60)
        while True:  # for ever, but for the other's error
            check()

    with pytest.raises(OutputError, match="no room"):
        in_threads(work, range(5), 2)
    assert sorted(begun) == [0, 1]


@pytest.mark.parametrize("cpus", [1, 2])
def test_the_first_to_fail_is_told_and_keeps_no_other_threads_memory(
    monkeypatch: pytest.MonkeyPatch, cpus: int
) -> None:
    class Buffer: ...

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    compute = ComputePool(2)
    kept: list[weakref.ref[Buffer]] = []
    both, failed = threading.Barrier(2, timeout=60), threading.Event()

    def fail(buffer: Buffer, message: str) -> None:
        raise OutputError(28, message)

    def work(item: int, check: Check) -> None:
        buffer = Buffer()
        if item == 0:
            kept.append(weakref.ref(buffer))
        both.wait()
        if item == 1:
            try:
                compute.run(fail, buffer, "first")
            finally:
                failed.set()
        assert failed.wait(60)
        while True:
            try:
                check()
            except BaseException as ending:
                compute.run(fail, buffer, "second")
                raise AssertionError from ending

    gc.disable()
    try:
        with pytest.raises(OutputError, match="first"):
            in_threads(work, range(2), 2, beside=compute)
        assert [reference() for reference in kept] == [None]
    finally:
        gc.enable()


def test_ctrl_c_keeps_nothing_alive() -> None:
    class Weights: ...

    kept: list[weakref.ref[Weights]] = []

    def load() -> None:
        weights = Weights()
        kept.append(weakref.ref(weights))
        in_threads(lambda item, check: press() if item == 1 else None, range(2), 1)

    gc.disable()
    try:
        with pytest.raises(KeyboardInterrupt):
            load()
        assert [reference() for reference in kept] == [None]
    finally:
        gc.enable()


def test_an_error_of_another_signals_handler_ends_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alarm(Exception): ...

    def handler(number: int, frame: object) -> None:
        raise Alarm

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    compute = ComputePool(3)

    waits = threading.Event()  # the main thread, for the others

    def told_wait(futures: list[Future[Any]]) -> object:
        waits.set()
        return wait(futures)

    monkeypatch.setattr("baize_engine.interrupts.wait", told_wait)

    def work(item: int, check: Check) -> None:
        assert waits.wait(60)
        compute.run(press, signal.SIGALRM)
        while True:
            compute.run(check)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(Alarm):
            in_threads(work, range(1), 3, beside=compute)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert no_threads_left()


def wait_for_the_note() -> None:
    """Until the main thread has left `deferred`'s handler, in which it may stand still for as long as it has no core."""
    main = threading.main_thread().ident
    assert main is not None
    until = time.monotonic() + 60
    while any(frame.f_code.co_name == "note" for frame, _ in traceback.walk_stack(sys._current_frames()[main])):
        assert time.monotonic() < until
        time.sleep(0.001)


class Pressing:
    """Presses Ctrl-C in every call of a function, which goes on once the main thread has noted the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.begun: list[str] = []
        noticed, method = threading.Event(), getattr(owner, name)

        def handler(number: int, frame: object) -> None:
            noticed.set()
            raise KeyboardInterrupt

        def pressing(*arguments: Any, **named: Any) -> Any:
            self.begun.append(name)
            press()
            assert noticed.wait(60)
            wait_for_the_note()
            return method(*arguments, **named)

        signal.signal(signal.SIGINT, handler)
        monkeypatch.setattr(owner, name, pressing)


SMALL = 64  # bytes of a block: the smallest file or first tensor that is hashed has more of them than FEW
FEW = 40  # of two threads, until Ctrl-C has been noticed and noted


def no_threads_left() -> bool:
    return not [thread.name for thread in threading.enumerate() if thread.name.startswith("baize")]


def test_threads_end_at_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    class Owner:
        def work(self, check: Check) -> None:
            while True:
                check()

    pressing = Pressing(monkeypatch, Owner, "work")
    with pytest.raises(KeyboardInterrupt):
        in_threads(Owner.work, [Owner() for _ in range(5)], 2)
    assert 1 <= len(pressing.begun) <= 2
    assert no_threads_left()


def test_verify_ends_at_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recover(*tiny.write_pair(tmp_path), tmp_path / "tuned", device="cpu", progress=False)
    monkeypatch.setattr("baize_engine.recovery.hashing.BLOCK", SMALL)
    pressing = Pressing(monkeypatch, InputFile, "read")
    with pytest.raises(KeyboardInterrupt):
        verify(tmp_path / "tuned")
    assert 1 <= len(pressing.begun) < FEW
    assert no_threads_left()


def test_hashing_before_going_on_ends_at_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)
    run = streaming.stream

    def killed(*arguments: Any, **named: Any) -> Any:
        run(*arguments, **named)
        raise SystemError  # nobody cleans up

    with monkeypatch.context() as patch:
        patch.setattr("baize_engine.recovery.run.stream", killed)
        patch.setattr(CheckpointWriter, "discard", lambda _: None)
        with pytest.raises(SystemError):
            recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    monkeypatch.setattr("baize_engine.recovery.hashing.BLOCK", SMALL)
    pressing = Pressing(monkeypatch, InputFile, "read")
    with pytest.raises(KeyboardInterrupt):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False, resume=True)
    assert 1 <= len(pressing.begun) < FEW
    assert no_threads_left()


def test_hashing_of_sources_ends_at_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)
    run = streaming.stream
    pressed: list[Pressing] = []

    def then_press(*arguments: Any, **named: Any) -> Any:
        records = run(*arguments, **named)
        monkeypatch.setattr("baize_engine.recovery.hashing.BLOCK", SMALL)
        pressed.append(Pressing(monkeypatch, InputFile, "read"))
        return records

    monkeypatch.setattr("baize_engine.recovery.run.stream", then_press)
    with pytest.raises(KeyboardInterrupt):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False, hash_sources=True)
    assert 1 <= len(pressed[0].begun) < FEW
    assert not (tmp_path / "tuned").exists()
    assert no_threads_left()


def test_loading_ends_at_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = tiny.write_pair(tmp_path)
    reads = Pressing(monkeypatch, weight_loader, "read_into")
    with pytest.raises(KeyboardInterrupt):
        Engine.from_pretrained(base, device="cpu", quantize="int8")
    assert 1 <= len(reads.begun) < 15  # matrices
    assert no_threads_left()


def test_what_ignores_or_handles_it_goes_on_to() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred() as arrived:
        press()
    assert arrived == []
    handled: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: handled.append(number))
    with deferred() as arrived:
        press()
        assert handled == [signal.SIGINT]
    assert arrived == []


def test_a_handler_that_chose_another_keeps_it() -> None:
    def once(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, once)
    with pytest.raises(KeyboardInterrupt), deferred():
        press()
        press()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_takes_no_signals() -> None:
    seen: list[object] = []

    def elsewhere() -> None:
        with deferred() as arrived:
            seen.append((arrived, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [([], signal.default_int_handler)]


def test_a_recovery_stops_its_workers_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)
    pressing = Pressing(monkeypatch, CheckpointWriter, "write")
    with pytest.raises(KeyboardInterrupt):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert not (tmp_path / "tuned").exists()
    assert 1 <= len(pressing.begun) < 21  # all would be
    assert no_threads_left()


def test_a_recovery_goes_on_where_a_program_notes_the_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)
    write, noted = CheckpointWriter.write, []

    def pressing(self: CheckpointWriter, name: str, offset: int, view: memoryview) -> None:
        press()
        write(self, name, offset, view)

    monkeypatch.setattr(CheckpointWriter, "write", pressing)
    signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    assert len(recover(base, diff, tmp_path / "tuned", device="cpu", progress=False).manifest.tensors) == 21
    assert noted


def test_a_journal_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)

    def pressed(*arguments: Any, **settings: Any) -> Journal:
        made = Journal(*arguments, **settings)
        press()  # before anything has noted that it is there
        return made

    monkeypatch.setattr("baize_engine.recovery.journaled_output.Journal", pressed)
    with pytest.raises(KeyboardInterrupt):
        recover(base, diff, tmp_path / "new/tuned", device="cpu", progress=False)
    assert not (tmp_path / "new").exists()


def interruption_that_becomes(error: Exception) -> None:
    with interrupted_once():
        try:
            press()
            time.sleep(5)
        finally:
            raise error


def test_a_clean_up_that_fails_is_told() -> None:
    with pytest.raises(OutputError, match="remove it by hand"):
        interruption_that_becomes(OutputError(5, "remove it by hand"))


def test_what_the_first_becomes_is_an_interruption() -> None:
    with pytest.raises(KeyboardInterrupt):
        interruption_that_becomes(RuntimeError("release unlocked lock"))  # as the standard library may
    with pytest.raises(RuntimeError, match="no interruption"), interrupted_once():
        raise RuntimeError("no interruption")
