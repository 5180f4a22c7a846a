"""Recoveries whose file operations fail: a script that runs under the shim `io_faults.c`, and what starts it.

`sweep` lets one kind of call fail at its first occurrence, then at its second, and so on until a run does not reach it;
`resumed` does so to runs with resume, and resumes; `kills` does the same with SIGKILL, or kills after random times, and
resumes. Each prints a JSON object a run: facts only, which `test_io_faults.py` judges.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

SOURCE = Path(__file__).with_name("io_faults.c")
FAIL, SHORT, KILL = 1, 2, 3
SHARD = 60_000  # bytes: so that the result has several shards and an index


def compile_shim(folder: Path) -> tuple[Path, str]:
    """(the shim, "") or (anything, why there is none)."""
    shim = folder / "io_faults.so"
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if not sys.platform.startswith("linux") or compiler is None:
        return shim, "LD_PRELOAD and a C compiler are needed"
    done = subprocess.run(
        [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", shim, SOURCE, "-ldl"],
        capture_output=True,
        text=True,
    )
    return shim, f"the shim does not compile here: {done.stderr.strip()[-300:]}" if done.returncode else ""


def start(shim: Path, *arguments: object, script: str = __file__) -> list[dict]:
    """Runs this script, or another, under the shim; what it printed."""
    done = subprocess.run(
        [sys.executable, script, *map(str, (shim, *arguments))],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{script} {arguments} failed: {done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


class Faults:
    """The shim's switch."""

    def __init__(self, shim: str) -> None:
        self._library = ctypes.CDLL(shim)
        self._library.faults_arm.argtypes = [
            ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_size_t,
        ]  # fmt: skip

    def arm(
        self, kind: int, calls: str, part: str, first: int = 0, sticky: bool = False, error: int = 0, most: int = 0
    ) -> None:
        self._library.faults_arm(kind, calls.encode(), part.encode(), first, sticky, error, most)

    def off(self) -> int:
        """Stops, and tells how many calls counted."""
        hits: int = self._library.faults_hits()
        self.arm(0, "", "")
        return hits


def content(folder: Path) -> dict[str, str]:
    """Every file below `folder` by its SHA-256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def small_shards() -> None:
    from baize_engine.checkpoint.writer import lay_out
    from baize_engine.recovery import output

    output.lay_out = functools.partial(lay_out, max_shard_bytes=SHARD)


def attempt(base: Path, diff: Path, out: Path, **settings: object) -> dict:
    """Facts of one recovery: what it raised, in whose words, and what lies there."""
    from baize_engine import recover
    from baize_engine.errors import BaizeError, error_chain

    facts: dict = {"error": None, "message": "", "tensors": None, "resumed": None}
    try:
        result = recover(base, diff, out, device="cpu", progress=False, **settings)
        facts["tensors"] = {name: record.sha256 for name, record in result.manifest.tensors.items()}
        facts["resumed"] = result.resumed
    except (BaizeError, OSError) as error:
        facts["error"] = type(error).__name__
        facts["message"] = error_chain(error)
    return facts | {"left": sorted(path.name for path in out.iterdir()) if out.exists() else None}


def verified(out: Path) -> bool | None:
    """None where no reader takes `out` for a checkpoint, else whether it is whole."""
    from baize_engine import verify
    from baize_engine.checkpoint.index import read_index
    from baize_engine.errors import CheckpointError

    try:
        read_index(out)
    except CheckpointError:
        return None
    try:
        return verify(out).ok
    except CheckpointError:
        return False


def sweep(faults: Faults, root: Path, calls: str, part: str, number: int, sticky: int, stride: int) -> Iterator[dict]:
    """The fault at call 0, `stride`, 2 `stride`, ... of `calls` on files of `part`, until a run has fewer."""
    base, diff, out = root / "base", root / "diff", root / "tuned"
    before = content(base), content(diff)
    first = 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        faults.arm(FAIL, calls, str(root / part), first, bool(sticky), number)
        facts = attempt(base, diff, out)
        hits = faults.off()
        facts["verified"] = verified(out)
        facts |= {"first": first, "reached": hits > first, "inputs_same": (content(base), content(diff)) == before}
        yield facts
        if hits <= first:
            return
        first += stride


def resumed(faults: Faults, root: Path, calls: str, number: int, sticky: int, stride: int) -> Iterator[dict]:
    """As `sweep`, for calls on files of the result; each run has resume, and is resumed when the fault is over."""
    base, diff, out = root / "base", root / "diff", root / "tuned"
    wanted = attempt(base, diff, out)
    recorder, first = Recorder(), 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        faults.arm(FAIL, calls, str(out), first, bool(sticky), number)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            facts = attempt(base, diff, out, resume=True)
        hits = faults.off()
        facts |= {"verified": verified(out), "noted": sorted(noted_in(out)), "told": [str(one.message) for one in told]}
        recorder.names.clear()
        facts["then"] = attempt(base, diff, out, resume=True)
        facts["same"] = facts["then"]["tensors"] == wanted["tensors"] and facts["then"]["left"] == wanted["left"]
        yield facts | {"redone": sorted(recorder.names & set(facts["noted"]))}
        if hits <= first:
            return
        first += stride


def noted_in(out: Path) -> set[str]:
    """The tensors that a journal calls finished."""
    from baize_engine.recovery.journal import JOURNAL_NAME

    journal = (out / JOURNAL_NAME).read_bytes() if (out / JOURNAL_NAME).exists() else b""
    return {json.loads(line)["name"] for line in journal.split(b"\n")[:-1] if b'"name"' in line}


def short(faults: Faults, root: Path, most: int) -> Iterator[dict]:
    """Every read and write moves at most so many bytes."""
    faults.arm(SHORT, "read pread write pwrite", str(root), 0, True, 0, most)
    facts = attempt(root / "base", root / "diff", root / "tuned")
    hits = faults.off()
    yield facts | {"hits": hits, "verified": verified(root / "tuned")}


class Recorder:
    """Notes which tensors are written, from here on."""

    def __init__(self) -> None:
        from baize_engine.checkpoint.writer import CheckpointWriter

        self.names: set[str] = set()
        write = CheckpointWriter.write

        def recording(writer: CheckpointWriter, name: str, offset: int, view: memoryview) -> None:
            self.names.add(name)
            write(writer, name, offset, view)

        CheckpointWriter.write = recording  # type: ignore[method-assign]


def killed(out: Path, base: Path, diff: Path, delay: float | None, arm: object, **settings: object) -> bool:
    """Whether a recovery in a child was killed: by the shim, which `arm` sets, or after `delay` seconds."""
    return died(lambda: attempt(base, diff, out, **settings), arm, delay)


def died(work: Callable[[], object], arm: object, delay: float | None = None) -> bool:
    """Whether `work` in a child was killed."""
    child = os.fork()
    if child == 0:
        if callable(arm):
            arm()
        work()
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def kills(faults: Faults, root: Path, cases: int, stride: int, seed: int) -> Iterator[dict]:
    """`stride` above 0: SIGKILL at that many calls apart; 0: at random times, some runs killed again while they resume."""
    from baize_engine.recovery.journal import JOURNAL_NAME

    base, diff, out = root / "base", root / "diff", root / "tuned"
    before = content(base), content(diff)
    wanted = attempt(base, diff, out)
    shutil.rmtree(out)
    begin = time.perf_counter()
    attempt(base, diff, out)
    usual = time.perf_counter() - begin
    recorder, rng = Recorder(), random.Random(seed)
    every = "open write pwrite fallocate truncate fsync close rename unlink mkdir"
    for case in range(cases):
        shutil.rmtree(out, ignore_errors=True)
        arm = functools.partial(faults.arm, KILL, every, str(out), case * stride) if stride else None
        delay = None if stride else rng.uniform(0, 0.8 * usual)
        died = killed(out, base, diff, delay, arm)
        again = 0
        while died and not stride and (out / JOURNAL_NAME).exists() and rng.random() < 0.3:
            again += killed(out, base, diff, rng.uniform(0, 0.5 * usual), None, resume=True)
        left = sorted(path.name for path in out.iterdir()) if out.exists() else []
        noted = noted_in(out)
        looks = verified(out)
        kept = content(out) if left else {}
        plain = attempt(base, diff, out) if left else {"message": "", "error": None}
        untouched = not left or content(out) == kept
        recorder.names.clear()
        resumed = attempt(base, diff, out, resume=True)
        resumed["verified"] = verified(out)
        yield {
            "case": case,
            "killed": died,
            "killed_again": again,
            "left": left,
            "noted": len(noted),
            "verified": looks,
            "plain": plain,
            "untouched": untouched,
            "resumed": resumed,
            "same": resumed["tensors"] == wanted["tensors"] and sorted(resumed["left"]) == sorted(wanted["left"]),
            "redone": sorted(noted & recorder.names),
            "inputs_same": (content(base), content(diff)) == before,
        }
        if stride and not died:
            return


def main() -> None:
    faults = Faults(sys.argv[1])
    kind, root, *rest = sys.argv[2:]
    small_shards()
    if kind == "sweep":
        found = sweep(faults, Path(root), rest[0], rest[1], *map(int, rest[2:]))
    elif kind == "resumed":
        found = resumed(faults, Path(root), rest[0], *map(int, rest[1:]))
    elif kind == "short":
        found = short(faults, Path(root), int(rest[0]))
    else:
        found = kills(faults, Path(root), *map(int, rest))
    for facts in found:
        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
