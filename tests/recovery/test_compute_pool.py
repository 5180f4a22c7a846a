"""Calls of many threads, made by as few as there are processors."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from baize_engine.recovery.compute_pool import ComputePool


def have(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)


def test_two_processors_make_two_calls_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 2)
    pair, lock, active, most = threading.Barrier(2, timeout=60), threading.Lock(), 0, 0

    def call(number: int) -> tuple[int, str]:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        pair.wait()  # for ever, if one were made after the other
        with lock:
            active -= 1
        return number, threading.current_thread().name

    with ComputePool(6) as compute, ThreadPoolExecutor(6) as workers:
        results = list(workers.map(lambda number: compute.run(call, number), range(24)))
    assert [number for number, _ in results] == list(range(24))
    assert {name for _, name in results} == {"baize-compute_0", "baize-compute_1"}
    assert most == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("baize-compute")]


@pytest.mark.parametrize("cpus", [3, 64])
def test_with_enough_processors_each_thread_makes_its_own(monkeypatch: pytest.MonkeyPatch, cpus: int) -> None:
    have(monkeypatch, cpus)
    with ComputePool(3) as compute:
        assert compute.run(threading.get_ident) == threading.get_ident()


@pytest.mark.parametrize("cpus", [1, 4])
def test_what_a_call_raises_comes_to_the_caller(monkeypatch: pytest.MonkeyPatch, cpus: int) -> None:
    have(monkeypatch, cpus)
    with ComputePool(4) as compute:
        for error in (ValueError("no"), SystemExit(3)):
            with pytest.raises(type(error)) as caught:
                compute.run(throw, error)
            assert caught.value is error
        assert compute.run(divmod, 7, 2) == (3, 1)


def test_calls_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 1)
    with ComputePool(2) as compute:
        pass
    with pytest.raises(RuntimeError, match="the compute pool has ended"):
        compute.run(divmod, 7, 2)


@pytest.mark.parametrize("started", [False, True])
def test_threads_that_do_not_start(monkeypatch: pytest.MonkeyPatch, started: bool) -> None:
    have(monkeypatch, 3)
    start, begun = threading.Thread.start, []

    def failing(thread: threading.Thread) -> None:
        begun.append(thread)
        if len(begun) < 2 or started:
            start(thread)
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", failing)
    with pytest.raises(RuntimeError, match="can't start"), ComputePool(4):
        pass
    assert len(begun) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("baize-compute")]


def throw(error: BaseException) -> None:
    raise error


def test_a_call_after_the_main_thread_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the system starts threads then: those of these calls are there before."""
    have(monkeypatch, 1)
    with ComputePool(2) as compute, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr("concurrent.futures.thread._shutdown", True)  # what the main thread's end sets
        assert compute.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(RuntimeError, match="after interpreter shutdown"):
            pool.submit(divmod, 7, 2)
