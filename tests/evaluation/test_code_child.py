"""The supervisor of programs that nobody has read: what it waits for, says, and ends with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from baize_engine.evaluation.code_child import MESSAGE_BYTES, OUTPUT_BYTES, explain, read_frame, watch, write_frame
from baize_engine.evaluation.code_execution import PACKAGES, START


class Pipe(NamedTuple):
    reading: int
    writing: int


@pytest.fixture
def pipes() -> Iterator[list[Pipe]]:
    """The caller's, the result's, the output's. A test may close the end that is written to, and put -1 in its place."""
    made = [Pipe(*os.pipe()) for _ in range(3)]
    yield made
    for pipe in made:
        for descriptor in pipe:
            if descriptor >= 0:
                os.close(descriptor)


def close_end(pipes: list[Pipe], number: int) -> None:
    os.close(pipes[number].writing)
    pipes[number] = pipes[number]._replace(writing=-1)


def watched(pipes: list[Pipe], seconds: float = 60) -> bytes:
    caller, result, output = pipes
    return watch(caller.reading, result.reading, output.reading, seconds)


def test_a_result_ends_the_wait_and_stays_to_be_read(pipes: list[Pipe]) -> None:
    os.write(pipes[1].writing, b"result")
    assert watched(pipes) == b""
    assert os.read(pipes[1].reading, 100) == b"result"


def test_the_end_of_all_who_could_bring_it_is_a_result(pipes: list[Pipe]) -> None:
    close_end(pipes, 1)
    close_end(pipes, 2)
    assert watched(pipes) == b""


def test_no_result(pipes: list[Pipe]) -> None:
    close_end(pipes, 2)  # a program may close its output
    os.write(pipes[0].writing, b"the next program, which is no reason to end")
    assert watched(pipes, 0.01) == b"timed out"


def test_a_result_that_is_there_counts_however_late_one_looks(pipes: list[Pipe]) -> None:
    os.write(pipes[1].writing, b"result")
    assert watched(pipes, 0) == b""


def test_output_without_end_does_not_lengthen_the_time(pipes: list[Pipe]) -> None:
    os.write(pipes[2].writing, b"x" * 1000)
    assert watched(pipes, 0) == b"timed out"


@pytest.mark.parametrize(("size", "stopped"), [(OUTPUT_BYTES, b""), (OUTPUT_BYTES + (1 << 20), b"too much output")])
def test_output_up_to_its_limit(pipes: list[Pipe], size: int, stopped: bytes) -> None:
    """The output is written before the result."""
    result = pipes[1].writing
    code = f"import os\nprint('x' * {size}, end='', flush=True)\nos.write({result}, b'result')"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=pipes[2].writing, pass_fds=[result])
    try:
        assert watched(pipes) == stopped
    finally:
        writer.kill()
        writer.wait()


def test_when_the_caller_has_gone_so_does_the_supervisor(pipes: list[Pipe]) -> None:
    os.write(pipes[0].writing, b"the next program")
    close_end(pipes, 0)
    with pytest.raises(SystemExit):
        watched(pipes)


def test_frames_one_by_one(pipes: list[Pipe]) -> None:
    reading, writing = pipes[0]
    for content in (b"one", b"", b"three" * 1000):
        write_frame(writing, content)
    os.write(writing, b"\0\0\0\5four")  # a frame that was cut
    close_end(pipes, 0)
    assert [read_frame(reading) for _ in range(5)] == [b"one", b"", b"three" * 1000, None, None]


class Long(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (AssertionError(), b"AssertionError"),
        (AssertionError("why: "), b"AssertionError: why"),
        (KeyError("\u00e4\n"), "KeyError: '\u00e4\\n'".encode()),
        (ValueError("\udc80"), b"ValueError: \\udc80"),
        (SystemExit(0), b"SystemExit: 0"),
        (Long("\u00e4" * 10_000), ("Long: " + "\u00e4" * 10_000).encode()[:MESSAGE_BYTES]),
    ],
)
def test_an_error_in_a_line(error: BaseException, text: bytes) -> None:
    assert explain(error) == text


def supervisor(caller: int, scratch: Path) -> subprocess.CompletedProcess[bytes]:
    """One that is given no program."""
    code = START.format(
        packages=str(PACKAGES), caller=caller, seconds=1.0, memory=1 << 28, scratch=str(scratch), namespaces=True
    )
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.DEVNULL, capture_output=True)


def test_a_supervisor_whose_caller_has_gone_already_ends_at_once(tmp_path: Path) -> None:
    done = supervisor(os.getppid(), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_a_supervisor_without_a_place_says_what_it_has_tried(tmp_path: Path) -> None:
    """In namespaces, if there are any, the first to fail is the mount of the new root."""
    done = supervisor(os.getpid(), tmp_path / "absent")
    assert (done.returncode, done.stdout) == (1, b"")
    tried = done.stderr.decode().partition("(and no namespaces: ")
    assert f"No such file or directory: '{tmp_path / 'absent'}'" in tried[0]
    assert tried[2].endswith(")\n")
    assert "mount: " in tried[2] or "unshare: " in tried[2] or "users of the namespace: " in tried[2]
