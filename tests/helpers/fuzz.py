"""A structure-aware, coverage-guided fuzzer of everything that reads files of strangers.

python tests/helpers/fuzz.py --cases 1000000 --seed 0          all readers; exits with 1 at the first case that breaks a promise
python tests/helpers/fuzz.py --cases 100000 --seed 7 torch manifest   these

The promises: no code of a file runs and nothing but its folder is opened (an audit hook sees both); the only exception is this
project's own, and its message is short and names the file; no case takes long, or memory; what is accepted lies within its
file. Cases are changed from seeds and from cases that reached new lines (`sys.settrace`, for a part of them).
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz_readers import NAMES, Broken, Target, Whole, targets
from peak_memory import begin_anew, peak_memory

from baize_engine import checkpoint
from baize_engine.errors import BaizeError

READERS = str(Path(checkpoint.__file__).parent)
TRACED = 24  # one case of so many is traced for new lines
POOL = 400  # cases kept for their lines
MESSAGE = 2500  # characters beside the path
SECONDS = 60  # for one case, which takes milliseconds
GROWTH = 128 << 20  # bytes that the process may grow by, over all cases
QUIET = ("object.__getattr__", "object.__setattr__", "object.__delattr__", "sys._getframe", "builtins.id")


class Watch:
    """The audit hook, which cannot be taken out again, and the alarm; both act only while a case runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.active = str(folder), False
        sys.addaudithook(self._hook)
        signal.signal(signal.SIGALRM, self._alarm)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.active or event in QUIET:
            return
        if event in ("open", "os.listdir", "os.scandir", "glob.glob", "glob.glob/2", "pathlib.Path.glob"):
            where = os.fspath(arguments[0]) if isinstance(arguments[0], str | os.PathLike) else None
            if where is None or where.startswith(self.folder):
                return
        self.active = False
        raise Broken(f"{event} {arguments!r:.300}")

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        self.active = False
        raise Broken(f"a case takes more than {SECONDS} s")

    def run(self, read: Callable[[], None], armed: bool = True) -> None:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        self.active = armed
        try:
            read()
        finally:
            self.active = False
            signal.setitimer(signal.ITIMER_REAL, 0)


class Trace:
    """Notes which line of the readers follows which."""

    def __init__(self) -> None:
        self.steps: set[tuple[str, int, int]] = set()

    def enter(self, frame: FrameType, event: str, argument: object) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(READERS):
            return None
        last = 0

        def line(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal last
            self.steps.add((file, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line


def run_case(target: Target, watch: Watch, content: bytes, trace: Trace | None = None, armed: bool = True) -> bool:
    """Feeds one case to its reader; whether it took new steps. Broken where a promise is not kept."""
    target.file.write_bytes(content)
    begin = time.perf_counter()
    if trace is not None:
        sys.settrace(trace.enter)
    try:
        watch.run(target.read, armed)
        target.accepted += 1
    except BaizeError as error:
        message = str(error)
        if str(target.file.parent) not in message:
            raise Broken(f"a message that does not name the file: {message:.300}") from error
        if len(message) > MESSAGE + len(str(target.file)) or not message.isprintable():
            raise Broken(f"a message of {len(message)} characters: {message!r:.300}") from error
    finally:
        sys.settrace(None)
    target.cases += 1
    target.slowest = max(target.slowest, time.perf_counter() - begin)
    if trace is None or trace.steps <= target.seen:
        return False
    target.seen |= trace.steps
    return True


def fuzz(names: list[str], count: int, seed: int, keep: Path) -> dict[str, Target]:
    """Runs `count` cases, dealt to the named readers by their weight; Broken (told, the case kept) ends it."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    found = {name: target for name, target in targets(folder).items() if name in names}
    weights = [6 if name == "torch" else 3 if name == "safetensors" else 1 for name in found]
    rng, watch = random.Random(seed), Watch(folder)
    content = b""
    try:
        for target in found.values():  # whatever they import, they import now
            for case in list(target.pool):
                content = case.render(Whole())
                run_case(target, watch, content, Trace(), armed=False)
        started = begin_anew()
        for number in range(count):
            if number % 1000 == 0:
                faulthandler.dump_traceback_later(600, exit=True)  # a loop in C, which no alarm gets out of
            (target,) = rng.choices(list(found.values()), weights)
            case = rng.choice(target.pool).changed(rng)
            content = case.render(rng)
            good = target.accepted
            new = run_case(target, watch, content, Trace() if number % TRACED == 0 else None)
            if new or (target.accepted > good and rng.random() < 0.2):
                target.pool.append(case)
                if len(target.pool) > POOL:
                    del target.pool[len(target.pool) // 8]
        grown = peak_memory() - started
        if grown > GROWTH:
            raise Broken(f"the process grew by {grown >> 20} MiB")
        print(f"grown by {grown >> 20} MiB; ", end="")
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            keep.write_bytes(content)
            print(f"{target.file.name}: kept as {keep} ({len(content)} bytes)", file=sys.stderr)
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(folder)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", help="torch safetensors index manifest config meta words (default: all)")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "baize_fuzz_case")
    options = parser.parse_args()
    names = options.readers or list(NAMES)
    begin = time.perf_counter()
    try:
        found = fuzz(names, options.cases, options.seed, options.keep)
    except (Exception, Broken) as error:  # noqa: BLE001  any is a finding
        print("".join(traceback.format_tb(error.__traceback__)), f"{error!r:.600}", file=sys.stderr)
        cause = error.__cause__
        if cause is not None:
            print("".join(traceback.format_tb(cause.__traceback__)), f"{cause!r:.600}", file=sys.stderr)
        return 1
    spent = time.perf_counter() - begin
    print(f"seed {options.seed}, {options.cases / spent:.0f} cases a second")
    for name, target in found.items():
        print(
            f"{name:<12} {target.cases:>8} cases  {target.accepted:>7} accepted  {len(target.seen):>5} line pairs  "
            f"{len(target.pool):>4} in the pool  slowest {target.slowest * 1e3:.1f} ms"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
