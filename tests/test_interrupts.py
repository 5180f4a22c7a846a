"""Ctrl-C waits where threads are managed, and then is what it was."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from baize_engine import cli, recover, verify
from baize_engine.checkpoint.file_io import InputFile
from baize_engine.checkpoint.writer import CheckpointWriter
from baize_engine.errors import OutputError
from baize_engine.interrupts import Check, deferred, in_threads
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


def test_one_within_another() -> None:
    steps: list[str] = []

    def work() -> None:
        with deferred() as outer:
            with deferred() as inner:
                press()
                assert len(inner) == len(outer) == 1
                steps.append("inner goes on")
            steps.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["inner goes on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_threads_give_results_in_order_and_end_at_the_first_error() -> None:
    assert in_threads(lambda item, check: item * 2, range(5), 2) == [0, 2, 4, 6, 8]
    begun, ended = [], []

    def work(item: int, check: Check) -> None:
        begun.append(item)
        if item == 1:
            raise OutputError(28, "no room")
        while True:  # for ever, but for the other's error
            try:
                check()
            except BaseException:
                ended.append(item)
                raise
            time.sleep(0.001)

    with pytest.raises(OutputError, match="no room"):
        in_threads(work, range(5), 2)
    assert (begun, ended) == ([0, 1], [0])


def test_threads_end_at_ctrl_c() -> None:
    begun = []

    def work(item: int, check: Check) -> None:
        begun.append(item)
        press()
        while True:
            check()
            time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt):
        in_threads(work, range(5), 2)
    assert 1 <= len(begun) <= 2
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("baize")]


def test_verify_ends_at_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)
    recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    read, begun = InputFile.read, []

    def pressing(self: InputFile, *arguments: Any) -> memoryview:
        begun.append(self)
        press()
        time.sleep(0.2)
        return read(self, *arguments)

    monkeypatch.setattr(InputFile, "read", pressing)
    with pytest.raises(KeyboardInterrupt):
        verify(tmp_path / "tuned")
    assert 1 <= len(begun) <= 4


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
    write, begun = CheckpointWriter.write, []

    def pressing(self: CheckpointWriter, name: str, offset: int, view: memoryview) -> None:
        begun.append(name)
        press()
        time.sleep(0.2)  # the main thread has it long before the next tensor
        write(self, name, offset, view)

    monkeypatch.setattr(CheckpointWriter, "write", pressing)
    with pytest.raises(KeyboardInterrupt):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert not (tmp_path / "tuned").exists()
    assert 1 <= len(begun) < 21  # all would be
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("baize")]


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

    monkeypatch.setattr("baize_engine.recovery.run.Journal", pressed)
    with pytest.raises(KeyboardInterrupt):
        recover(base, diff, tmp_path / "new/tuned", device="cpu", progress=False)
    assert not (tmp_path / "new").exists()


def interruption_that_becomes(error: Exception) -> None:
    with cli._interrupted_once():
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
    with pytest.raises(RuntimeError, match="no interruption"), cli._interrupted_once():
        raise RuntimeError("no interruption")
