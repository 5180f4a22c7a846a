"""Supervises programs that nobody has read: one after the other, each in a process of its own and away from all others.

What `code_execution.py` starts, in a fresh interpreter; there it says what is promised. Each program runs in a fork of it,
which costs a tenth of a new interpreter. Standard input brings programs; standard output takes the lines of `isolation()` and
then what became of each program; all as frames: 4 bytes of length, then content. Standard library only: it knows nothing of
the rest of the package, nor of the caller's environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
import os
import resource
import select
import signal
import sys
import time
from typing import NamedTuple, NoReturn

from baize_engine.evaluation.code_places import (
    FILE_BYTES,
    NOBODY,
    Folders,
    Namespaces,
    Place,
    Refused,
    call,
    close,
    die_with_parent,
    reap,
    write_file,
)

PROCESSES = 8  # of a program, threads included
FILES = 64  # open at once
SPARE_SECONDS = 10  # of processor time beyond the clock's: a supervisor on a busy machine may look late
OUTPUT_BYTES = 1 << 20  # on standard output and error together
MESSAGE_BYTES = 1000
OUT_OF_MEMORY = b"out of memory"
# What HumanEval's programs import, imported once before all forks: `typing` and `hashlib` alone take longer than a fork.
WARM = ("bisect", "collections", "copy", "datetime", "functools", "hashlib", "heapq", "itertools", "math", "operator",
        "random", "re", "string", "typing")  # fmt: skip
PROBE = b"import cmath, fractions"  # not in WARM: it needs what programs need, the files of the standard library

NO_NEW_PRIVILEGES, CAPABILITIES_3 = 38, 0x20080522  # linux/prctl.h, linux/capability.h


class Limits(NamedTuple):
    """seconds: by the clock. memory: bytes of address space of each process."""

    seconds: float
    memory: int


class Ends(NamedTuple):
    """A program's ends of its pipes."""

    token: int
    result: int
    output: int


def main(parent: int, limits: Limits, scratch: str, namespaces: bool) -> None:
    """parent: the caller's process. scratch: an empty folder. namespaces: use them where the system allows it."""
    die_with_parent(parent)
    with contextlib.suppress(OSError):  # some containers do not have it
        write_file("/proc/self/oom_score_adj", "1000")  # where the machine runs out of memory, these processes go first
    for name in WARM:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which does nothing to the first process of a namespace
    os.environ.clear()
    sys.argv[:] = [""]
    place = find_place(scratch, namespaces)
    write_frame(1, "\n".join(place.lines).encode())
    while (program := read_frame(0)) is not None:
        write_frame(1, judge(program, limits, place))


def find_place(scratch: str, namespaces: bool) -> Place:
    """SystemExit with a message where no program can run."""
    why = "not asked for"
    if namespaces:
        try:
            return tried(Namespaces(scratch))
        except Refused as refused:
            why = str(refused)
    try:
        return tried(Folders(scratch, why))
    except (OSError, Refused) as error:
        sys.exit(f"{error} (and no namespaces: {why})")


def tried(place: Place) -> Place:
    outcome = judge(PROBE, Limits(60, 1 << 30), place)
    library = os.path.dirname(os.__file__)
    place.settle(
        "" if outcome == b"passed" else f"a program that imports from {library}: {outcome.decode(errors='replace')}"
    )
    return place


def judge(program: bytes, limits: Limits, place: Place) -> bytes:
    """Runs a program, in UTF-8: "passed", or why not. What follows "failed: " may hold anything."""
    token_in, token_out = os.pipe()
    result_in, result_out = os.pipe()
    output_in, output_out = os.pipe()
    with place.folder() as folder:
        supervisor, child = os.getpid(), os.fork()
        if child == 0:
            run(program, Ends(token_in, result_out, output_out), folder, limits, supervisor)
        token = os.urandom(16)  # after the fork: it is in no memory of the program's
        os.write(token_out, token)
        close(token_in, token_out, result_out, output_out)
        try:
            stopped = watch(0, result_in, output_in, limits.seconds)
        finally:
            status = reap(child, place.kill)
    result = os.read(result_in, MESSAGE_BYTES)  # as nothing can write to it any more, its end if it is empty
    close(result_in, output_in)
    if stopped:
        return stopped
    if result == token:
        return b"passed"
    if not result and os.WIFSIGNALED(status):
        return b"killed by signal %d" % os.WTERMSIG(status)
    return result if result == OUT_OF_MEMORY else b"failed: " + (result or b"ended before its last line")


def watch(caller: int, result: int, output: int, seconds: float) -> bytes:
    """Waits for a program's result: why it must be stopped, or nothing. SystemExit if the caller has gone.

    caller, result, output: descriptors to read from; what the caller sends is left there.
    """
    poll = select.poll()
    poll.register(caller, 0)  # for its end only
    poll.register(result, select.POLLIN)
    poll.register(output, select.POLLIN)
    end, room = time.monotonic() + seconds, OUTPUT_BYTES
    while True:
        left = end - time.monotonic()
        ready = [descriptor for descriptor, _ in poll.poll(max(left, 0) * 1000)]  # also where it comes late
        if caller in ready:
            sys.exit()
        if result in ready:
            return b""
        if output in ready:
            size = len(os.read(output, 1 << 16))
            room -= size
            if size == 0:
                poll.unregister(output)
        if room < 0:
            return b"too much output"
        if left <= 0:
            return b"timed out"


def run(program: bytes, ends: Ends, folder: str, limits: Limits, supervisor: int) -> NoReturn:
    """The life of a program's process.

    The names that are needed after the program are taken before it, as it may replace them everywhere else. The token waits in
    its pipe meanwhile: who brings it has returned from the program, or has read a descriptor that it was not told of.
    """
    read, write, leave, text, anything, no_memory = os.read, os.write, os._exit, explain, BaseException, MemoryError
    try:
        confine(ends, folder, limits, supervisor)
        exec(compile(program.decode("utf-8", "surrogatepass"), "<program>", "exec", dont_inherit=True), {})
        write(ends.result, read(ends.token, 16))
    except no_memory:
        write(ends.result, OUT_OF_MEMORY)
    except anything as error:
        write(ends.result, text(error))
    finally:
        leave(0)


def explain(error: BaseException) -> bytes:
    """The error's type and message, at most MESSAGE_BYTES of them."""
    text = f"{type(error).__name__}: {error}"[:MESSAGE_BYTES].removesuffix(": ")
    return text.encode("utf-8", "backslashreplace")[:MESSAGE_BYTES]


def confine(ends: Ends, folder: str, limits: Limits, supervisor: int) -> None:
    """Takes from this process what a program must not have."""
    os.setsid()
    empty, unused = os.pipe()
    os.close(unused)
    for source, target in ((empty, 0), (ends.output, 1), (ends.output, 2)):
        os.dup2(source, target)
    low, high = sorted((ends.token, ends.result))
    for first, end in ((3, low), (low + 1, high), (high + 1, 256)):
        os.closerange(first, end)
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder, LANG="C.UTF-8")
    for kind, most in (
        (resource.RLIMIT_CPU, math.ceil(limits.seconds) + SPARE_SECONDS),
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, limits.memory),
    ):
        resource.setrlimit(kind, (most, most))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    call("capset", (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)())
    die_with_parent(supervisor)  # after the change of user, which takes it back


def read_frame(source: int) -> bytes | None:
    """The next frame from a descriptor, None at its end. Nothing that comes after the frame is read."""
    size = read_exactly(source, 4)
    return None if size is None else read_exactly(source, int.from_bytes(size, "big"))


def read_exactly(source: int, size: int) -> bytes | None:
    content = b""
    while len(content) < size:
        if not (piece := os.read(source, size - len(content))):
            return None
        content += piece
    return content


def write_frame(target: int, content: bytes) -> None:
    left = len(content).to_bytes(4, "big") + content
    while left:
        left = left[os.write(target, left) :]
