"""Runs Python programs that a model wrote, such as HumanEval's, and says which of them ended without an exception.

A guard rail for evaluation, not a prison. No program runs in a fork of this process. Each has a process of its own, with
limits of time, memory, processes, files and output, an empty folder, no input, no environment, and no descriptors but those of
its output and its result. Where the system allows (`isolation` says), it also has no network, and sees no files but the
standard library's and no processes but its own. Modules outside the standard library are not found.

Not promised: that no program passes by deceit, for it can compare equal to everything, or look for the pipe of its result;
that all its processes together keep to the memory of one; that it finds no fault in the kernel. Without namespaces, nor that
it leaves alone what its user may read, write, signal or reach by network. Knows no task.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import mkdtemp

from baize_engine.errors import BackendError
from baize_engine.evaluation.code_child import read_frame, write_frame
from baize_engine.evaluation.code_places import remove
from baize_engine.printable import shown

# The package's folder is left out again, so that programs do not find what is installed beside it.
START = """
import sys
sys.path.append({packages!r})
from baize_engine.evaluation.code_child import Limits, main
sys.path.pop()
main({caller}, Limits({seconds!r}, {memory}), {scratch!r}, {namespaces})
"""
PACKAGES = Path(__file__).resolve().parents[2]
KEPT = ("LD_LIBRARY_PATH",)  # which some interpreters need to start; programs do not see it
GRACE = 60.0  # seconds beyond a program's own until its supervisor is taken for dead


@dataclass(frozen=True)
class Outcome:
    """detail: "passed", "failed: AssertionError: …", "timed out", "out of memory", "too much output", "killed by signal 9"."""

    passed: bool
    detail: str


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class CodeRunner:
    """seconds: of each program, by the clock. memory_mib: of address space, for each process with the interpreter in it.

    workers: programs at a time. namespaces: use them where the system allows; False is as if it did not.
    """

    seconds: float = 3.0
    memory_mib: int = 512
    workers: int = field(default_factory=processors)
    namespaces: bool = True

    def __post_init__(self) -> None:
        for name in ("seconds", "memory_mib", "workers"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}, wanted more than 0")

    def isolation(self) -> list[str]:
        """What keeps programs apart on this system, a line each. BackendError where none can run."""
        supervisor = Supervisor(self)
        try:
            return supervisor.read().split("\n")
        finally:
            supervisor.close()

    def run(self, programs: Sequence[str]) -> list[Outcome]:
        """The outcomes, in the programs' order. BackendError where none can run.

        When it returns, or raises, also by Ctrl-C, the programs' processes have ended.
        """
        waiting, outcomes = deque(enumerate(programs)), dict[int, Outcome]()
        supervisors: list[Supervisor] = []
        try:
            while len(outcomes) < len(programs):
                while waiting and len(supervisors) < self.workers:
                    supervisors.append(Supervisor(self))
                    supervisors[-1].give(*waiting.popleft())
                for supervisor in ready(supervisors):
                    outcome = supervisor.outcome()
                    if outcome is None:
                        continue
                    outcomes[supervisor.number] = outcome
                    if waiting and supervisor.alive:
                        supervisor.give(*waiting.popleft())
                    else:
                        supervisors.remove(supervisor)
                        supervisor.close()
        finally:
            for supervisor in supervisors:
                supervisor.close()
        return [outcomes[number] for number in range(len(programs))]


class Supervisor:
    """A process that runs one program after the other (`code_child.py`). number: of the one that it was given.

    alive: takes another. overdue: when it has been silent too long, on the monotonic clock.
    """

    number: int
    overdue: float

    def __init__(self, runner: CodeRunner) -> None:
        self.alive = True
        self._greeted = False
        self._patience = runner.seconds + GRACE
        self._scratch = mkdtemp(prefix="baize-code-")
        code = START.format(
            packages=str(PACKAGES),
            caller=os.getpid(),
            seconds=runner.seconds,
            memory=runner.memory_mib << 20,
            scratch=self._scratch,
            namespaces=runner.namespaces,
        )
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", code], stdin=pipe, stdout=pipe, stderr=pipe,
                cwd="/", env={"LANG": "C.UTF-8", **kept}, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            remove(self._scratch)
            raise
        orders, answers, complaints = self._process.stdin, self._process.stdout, self._process.stderr
        assert orders is not None
        assert answers is not None
        assert complaints is not None
        self._orders, self._answers, self._complaints = orders, answers, complaints

    def fileno(self) -> int:
        return self._answers.fileno()

    def give(self, number: int, program: str) -> None:
        """Starts a program; its outcome comes as soon as this object can be read from."""
        content = program.encode("utf-8", "surrogatepass")
        self.number, self.overdue = number, time.monotonic() + self._patience
        with contextlib.suppress(BrokenPipeError):  # it has ended; its answer is to say why
            write_frame(self._orders.fileno(), content)

    def outcome(self) -> Outcome | None:
        """The program's outcome; None if what came was only the greeting. Waits for nothing."""
        if not wait([self.fileno()], 0):
            self.alive = False
            self._process.kill()
            return Outcome(False, "timed out")
        if not self._greeted:
            self.read()
            self._greeted = True
            return None
        detail = self.read()
        return Outcome(detail == "passed", shown(detail))

    def read(self) -> str:
        """The next thing that the supervisor says."""
        if (content := read_frame(self.fileno())) is not None:
            return content.decode("utf-8", "replace")
        self.alive = False
        complaint = self._complaints.read().decode("utf-8", "replace").strip()
        if complaint or not self._greeted:
            raise BackendError(
                f"programs cannot be run here: {complaint.rpartition(chr(10))[2] or 'their supervisor did not start'}"
            )
        return "killed its supervisor"

    def close(self) -> None:
        """Ends the supervisor, and with it the program. Returns once it has ended."""
        self._orders.close()  # by which it sees that it is to end
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._complaints.close()
        remove(self._scratch)


def ready(supervisors: list[Supervisor]) -> list[Supervisor]:
    """Waits until there is one to read from, or one that has been silent too long."""
    while True:
        now = time.monotonic()
        if overdue := [each for each in supervisors if each.overdue < now]:
            return overdue
        if heard := wait([each.fileno() for each in supervisors], min(each.overdue for each in supervisors) - now):
            return [each for each in supervisors if each.fileno() in heard]
