"""What a rank does with SIGTERM and SIGINT. Each in a process: handlers are the whole process's."""

from __future__ import annotations

import signal

import forked
import pytest

HEAD = """
import os, select, signal, sys, threading
from baize_engine.distributed.signals import Signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)

def seen(signals):
    signals.read()
    return signals.terminated
"""


def printed(code: str) -> str:
    done = forked.run(["-c", HEAD + code], timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().strip()


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_is_seen_through_the_file_and_ends_nothing_itself(rank: int) -> None:
    code = f"""
signals = Signals({rank})
before = seen(signals)
terminate()
print(before, bool(select.select([signals], [], [], 60)[0]), seen(signals), signals.program_handles_sigterm())
"""
    assert printed(code) == "False True True False"


def test_sigterm_is_seen_where_the_program_took_the_wakeup_file() -> None:
    code = """
signals = Signals(0)
signal.set_wakeup_fd(-1)  # as asyncio does when its last handler of a signal goes
terminate()
print(bool(select.select([signals], [], [], 60)[0]), seen(signals))
"""
    assert printed(code) == "True True"


def test_wake_is_no_signal() -> None:
    code = """
signals = Signals(0)
for _ in range(100000):
    signals.wake()
print(bool(select.select([signals], [], [], 60)[0]), seen(signals), bool(select.select([signals], [], [], 0)[0]))
"""
    assert printed(code) == "True False False"


@pytest.mark.parametrize(("rank", "count"), [(0, 1), (1, 0)])
def test_a_handler_of_the_program_stays_on_rank_0(rank: int, count: int) -> None:
    code = f"""
came = []
signal.signal(signal.SIGTERM, lambda *_: came.append(1))
signals = Signals({rank})
terminate()
print(len(came), seen(signals), signals.program_handles_sigterm())
"""
    assert printed(code) == f"{count} True {rank == 0}"


@pytest.mark.parametrize(("rank", "outcome"), [(0, "interrupted"), (1, "ignored")])
def test_sigint_is_for_rank_0(rank: int, outcome: str) -> None:
    code = f"""
signals = Signals({rank})
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("ignored")
except KeyboardInterrupt:
    print("interrupted")
"""
    assert printed(code) == outcome


def test_release_puts_back_what_was() -> None:
    code = """
reading, writing = os.pipe()
os.set_blocking(writing, False)
signal.set_wakeup_fd(writing)
Signals(0).release()
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, signal.set_wakeup_fd(-1) == writing)
"""
    assert printed(code) == "True True"


def test_release_leaves_what_came_since() -> None:
    code = """
signals = Signals(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
reading, writing = os.pipe()
os.set_blocking(writing, False)
signal.set_wakeup_fd(writing)
signals.release()
print(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN, signal.set_wakeup_fd(-1) == writing)
"""
    assert printed(code) == "True True"


def test_sigterm_ends_the_process_after_release_in_another_thread() -> None:
    code = """
signals = Signals(0)
thread = threading.Thread(target=signals.release)
thread.start()
thread.join()
terminate()
print("goes on")
"""
    done = forked.run(["-c", HEAD + code], timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, b"", b"")


def test_outside_the_main_thread_nothing_changes() -> None:
    code = """
made = []
thread = threading.Thread(target=lambda: made.append(Signals(1)))
thread.start()
thread.join()
made[0].release()
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    assert printed(code) == "True True"
