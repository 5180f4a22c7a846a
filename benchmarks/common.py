"""Shared by all benchmarks: repeated timing, the machine's ceilings, child processes, and the form of a report."""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

UNKNOWN = "unknown"  # the commit of a tree that does not say
# Set by `gpu_report.py --rehearse` and by tests: ceilings are measured on little memory and small matrices, engines take turns
# without a pause, and figures mean nothing.
REHEARSAL = "BAIZE_REHEARSAL"
REHEARSING = bool(os.environ.get(REHEARSAL))


@dataclass(frozen=True)
class Spread:
    """Seconds of repeated runs."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Spread:
        many = list(seconds)
        return cls(quantile(many, 0.5), quantile(many, 0.2), quantile(many, 0.8))


def quantile(values: Iterable[float], share: float) -> float:
    """The value that `share` of all are not above, between two neighbours by their distances."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


# Cells of latencies in a row: milliseconds by quantile, and how many there are; of fewer than 100, p99 is nearly the greatest.
FIRST = "ttft_ms", "ttft_p20", "ttft_p80", "ttft_p99", "firsts"  # of the time to the first token
GAP = "ms/token", "p20", "p80", "p99", "gaps"  # of the time from one token to the next


def latencies(names: Sequence[str], seconds: Sequence[float]) -> dict[str, float]:
    """FIRST or GAP, as `names` says, of these times."""
    return dict(
        zip(names, [*(quantile(seconds, share) * 1e3 for share in (0.5, 0.2, 0.8, 0.99)), len(seconds)], strict=True)
    )


def measure(run: Callable[[], object], runs: int, warmup: int = 1) -> Spread:
    """Seconds of `run`, `warmup` uncounted calls first."""
    for _ in range(warmup):
        run()
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return Spread.of(seconds)


@dataclass(frozen=True)
class Run:
    """A finished child process: wall and CPU seconds, peak resident bytes, exit code, what it printed, and the seconds after
    which the first of that came."""

    wall: float
    cpu: float
    peak: int
    code: int
    output: str
    first: float = 0.0


def run_child(command: Sequence[str | os.PathLike[str]], stderr: int | IO[bytes] = subprocess.STDOUT) -> Run:
    """Runs `command` by itself and reads the system's own account of it. stderr: as of subprocess.

    A launcher process in between, fresh and small, does the fork: a child's peak begins at what its parent had resident.
    """
    launcher = (
        "import os, sys, time, json; begin = time.perf_counter();"
        "pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ);"
        "_, status, usage = os.wait4(pid, 0);"
        "print('\\n' + json.dumps([begin, time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024,"
        " os.waitstatus_to_exitcode(status)]))"
    )
    words = [sys.executable, "-S", "-E", "-c", launcher, *(str(word) for word in command)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True) as launcher:
        assert launcher.stdout is not None
        said = launcher.stdout.read(1)
        came = time.perf_counter()  # the same clock in all processes
        said += launcher.stdout.read()
    if launcher.returncode:
        raise subprocess.CalledProcessError(launcher.returncode, words, said)
    output, _, account = said.rstrip("\n").rpartition("\n")
    begin, wall, cpu, peak, code = json.loads(account)
    return Run(wall, cpu, peak, code, output, min(came - begin, wall))  # this process may read late


def drop_cache(folders: Iterable[Path]) -> None:
    """Makes the next read of these files come from the disk: written back, then dropped from the page cache.

    Needs no privilege and touches no other file. That the pages are gone is looked up, not believed: where files live in
    memory (tmpfs) or another process maps them, a "cold" figure would be false, and SystemExit names the file.
    """
    for path in (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        if cached := cached_bytes(path):
            raise SystemExit(f"{path}: {cached} bytes stay in the page cache, so no run is cold here; use --warm")


def read_once(path: Path) -> None:
    """Brings a file, or the files of a folder, into the page cache."""
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        with open(file, "rb", buffering=0) as content:
            while content.read(1 << 24):
                pass


def cached_bytes(path: Path) -> int:
    """Bytes of the file's first 64 MiB that are in the page cache, by mincore, which reads nothing itself."""
    length = min(path.stat().st_size, 64 << 20)
    if length == 0:
        return 0
    from baize_engine.checkpoint.page_cache import mincore  # here: children whose start is timed import this module

    with open(path, "rb") as file:
        try:
            pages = mincore(file.fileno(), 0, length)
        except OSError as error:
            raise OSError(error.errno, f"mincore of {path} failed") from error
    return sum(pages) * mmap.PAGESIZE


def device_name(device: str = "cpu") -> str:
    """The GPU's name, or the processor's with the number of cores this process may use."""
    if device != "cpu":
        import torch

        return str(torch.cuda.get_device_name(device))
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def commit() -> str:
    """The commit of this checkout, "-dirty" behind it where tracked files differ; "unknown" outside one or without git."""
    here = Path(__file__).resolve().parent
    describe = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]  # no tag names
    try:
        found = subprocess.run(describe, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return UNKNOWN
    return found.stdout.strip() if found.returncode == 0 else UNKNOWN


def versions(*names: str) -> dict[str, str]:
    """Versions of Python and of installed packages; "absent" for those that are not."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the report there")
    return made
