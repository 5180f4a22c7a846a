"""Compiles kernels ahead, in processes that touch no GPU, into Triton's cache, where launches find them.

As a script it is such a process: a stand-in for Triton's driver names the GPU, the ops' own wrappers are called with tensors
that have no memory, and a launch ends when its kernel is compiled. Lines of JSON come in, a job each, and go out, what became
of it. `Compilers` runs several and hands out jobs, the urgent ones first.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent import futures
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shapes import PRESETS
from tuner import Move, Op, Plan, table

from baize_engine.kernels import settings

HERE = Path(__file__).resolve().parent
NOW, LATER = 0, 1  # priorities


@dataclass(frozen=True)
class Job:
    """One op of a model, launched with `how`. Jobs of one `key` compile the same kernels."""

    preset: str
    kind: str
    op: Op
    how: Any
    key: tuple[Any, ...]

    @classmethod
    def of(cls, preset: str, kind: str, op: Op, how: Any, dependent: bool) -> Job:
        """Attention and the sampler do not depend on the weights, and no kernel on the number of rows but by its tile."""
        key = op.key, op.launched(how, dependent)
        return cls(preset, kind, op, how, key)

    def line(self) -> str:
        how = asdict(self.how)
        return json.dumps(
            {"preset": self.preset, "kind": self.kind, "name": self.op.name, "rows": self.op.rows, "how": how}
        )


def jobs(preset: str, kind: str, ops: Iterable[Op], moves: Iterable[Move], start: Plan, dependent: bool) -> list[Job]:
    """What `ops` with the settings of `start`, and each move away from them, launch; each kernel once."""
    found = [Job.of(preset, kind, op, start[op.name], dependent) for op in ops]
    for move in moves:
        plan = move.on(start)
        found += [Job.of(preset, kind, op, plan[op.name], dependent) for op in move.ops]
    return list({job.key: job for job in found}.values())


class Compilers:
    """Processes that compile for a GPU of `capability` (90 is sm_90); none where `processes` is 0, as a launch compiles too."""

    def __init__(self, capability: int, dependent: bool, processes: int) -> None:
        self._command = [sys.executable, str(HERE / "precompile.py"), str(capability), "pdl" if dependent else "plain"]
        self._queue: queue.PriorityQueue[tuple[int, int, Job | None]] = queue.PriorityQueue()
        self._order, self._lock = itertools.count(), threading.Lock()
        self._done: dict[tuple[Any, ...], Future[str | None]] = {}
        self._started: set[tuple[Any, ...]] = set()
        self._running: list[subprocess.Popen[str]] = []
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(processes)]
        for each in self._threads:
            each.start()

    def __enter__(self) -> Compilers:
        return self

    def __exit__(self, *_: object) -> None:
        """What is not compiled by now never will be."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()
        for _each in self._threads:
            self._queue.put((NOW - 1, next(self._order), None))
        for thread in self._threads:
            thread.join()

    @property
    def compiled(self) -> int:
        """Jobs that are done."""
        return sum(future.done() for future in self._done.values())

    def ask(self, jobs: Iterable[Job], priority: int = LATER) -> None:
        """Has them compiled in this order; what was asked for before, but not begun, comes sooner if `priority` is NOW."""
        if not self._threads:
            return
        for job in jobs:
            with self._lock:
                known = job.key in self._done
                if not known:
                    self._done[job.key] = Future()
                wanted = not known or (priority == NOW and job.key not in self._started)
            if wanted:
                self._queue.put((priority, next(self._order), job))

    def problem(self, job: Job, seconds: float) -> str | None:
        """Waits until a job is done, and says why it cannot be compiled; None where it can. TimeoutError after `seconds`."""
        if not self._threads:
            return None
        self.ask([job], NOW)
        try:
            return self._done[job.key].result(max(0.0, seconds))
        except futures.TimeoutError as error:  # before Python 3.11 not the built-in one
            raise TimeoutError(f"{job.op.name} is not compiled after {seconds:.0f} s") from error

    def _serve(self) -> None:
        """The thread of one process."""
        process: subprocess.Popen[str] | None = None
        while True:
            _, _, job = self._queue.get()
            with self._lock:
                if job is None or self._closed:
                    break
                if job.key in self._started:
                    continue
                self._started.add(job.key)
                if process is None or process.poll() is not None:
                    process = self._start()
            self._done[job.key].set_result(_answer(process, job))
        if process is not None:
            process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        path = [str(HERE.parent), *filter(None, [environment.get("PYTHONPATH")])]
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**environment, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._running.append(process)
        return process


def _answer(process: subprocess.Popen[str], job: Job) -> str | None:
    """Why the process could not compile a job, or None."""
    line = ""
    try:
        if process.stdin and process.stdout:
            process.stdin.write(job.line() + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
    except BrokenPipeError:  # it has ended
        line = ""
    if not line:
        return f"the process that compiles ended with {process.wait()}"
    problem: str | None = json.loads(line)["problem"]
    return problem


# The process


def stand_in(capability: int, dependent: bool) -> None:
    """From here on launches of this process compile for a GPU that is not here, and run nothing."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    from baize_engine.kernels import attention, launch, norm, product, sample

    class Driver:
        """What a launch asks of the driver before it loads machine code."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    triton.runtime.driver.set_active(Driver())
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return run(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = compile_only
    for module in (launch, product, attention, norm, sample):  # those that took the functions by name, too
        for name, function in (("check_device", _anywhere), ("dependent_launch", lambda _: dependent)):
            if hasattr(module, name):
                setattr(module, name, function)


def _anywhere(name: str, tensor: Any, device: Any) -> None:
    """Tensors may lie on any device."""


@cache
def _chain(preset: str, kind: str, rows: int, of: str) -> Any:
    import chains

    from baize_engine.model.config import ModelConfig

    shape = PRESETS[preset]
    return chains.of_ops(
        chains.kernels(), ModelConfig.from_dict(shape.config(shape.vocabulary, "float16")), kind, rows, of
    )


def compile_one(preset: str, kind: str, name: str, rows: int, how: dict[str, Any]) -> None:
    """Calls the op as the tuner does."""
    from baize_engine.kernels import tuned

    chain = _chain(preset, kind, rows, name if name in ("head", "sample") else "layers")
    op = next(op for op in chain.ops if op.name == name)
    call = next(call for one, call in chain.calls[chain.first] if one == name)
    with tuned.using(table([op], {name: settings.from_dict(op.op, op.bits, how)})):
        call()


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whom it works for, who then closes its stdin
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a compiler prints is no answer
    stand_in(int(sys.argv[1]), sys.argv[2] == "pdl")
    for line in sys.stdin:
        problem = None
        try:
            compile_one(**json.loads(line))
        except Exception as error:  # noqa: BLE001  said where the job came from
            problem = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        print(json.dumps({"problem": problem}), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
