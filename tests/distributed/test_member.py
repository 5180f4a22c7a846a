"""A rank's process as others see it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from baize_engine.distributed import member
from baize_engine.distributed.member import Member


def test_json_and_back() -> None:
    me = Member.of_this_process(3)
    assert Member.from_json(me.to_json()) == me
    assert str(replace(me, host="b", pid=12)) == "rank 3 (b, pid 12)"


ENDS = pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("os.kill(os.getpid(), 9)", "was killed by signal 9"),
        ("os._exit(3)", "ended with code 3"),
        ("os._exit(0)", "ended"),
    ],
)


@ENDS
def test_how_it_ended(ending: str, words: str) -> None:
    code = f"import os, sys; sys.stdin.read(); {ending}"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        seen = replace(Member.of_this_process(1), pid=process.pid)
        pidfd = seen.pidfd()
        assert pidfd is not None
        assert process.stdin
        process.stdin.close()
        assert select.select([pidfd], [], [], 60)[0]
        assert seen.how_it_ended(pidfd) == words
        process.wait()
        assert seen.how_it_ended(pidfd) in (words, "ended")  # as the kernel is
        os.close(pidfd)


@ENDS
def test_how_it_ended_on_an_older_kernel(ending: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "_status_of_pidfd", lambda pidfd: None)
    test_how_it_ended(ending, words)


def test_a_process_of_another_machine_is_not_looked_for() -> None:
    assert replace(Member.of_this_process(1), machine="another").pidfd() is None


def test_a_process_that_is_gone() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ProcessLookupError):
        replace(Member.of_this_process(1), pid=process.pid).pidfd()


def test_where_a_container_forbids_it_a_process_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int) -> int:
        raise PermissionError(pid)

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    assert Member.of_this_process(1).pidfd() is None


def test_without_proc_nobody_sees_another(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Member.of_this_process(0)

    def no_proc(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", no_proc)
    assert Member.of_this_process(0).machine == f"{me.host} {os.getpid()}"
