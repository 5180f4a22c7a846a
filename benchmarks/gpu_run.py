"""Runs a step as a process: its outcome, and the rows and test results that it had when it ended. Knows no plan."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpu_plan import REPO, Step

TAIL = 8000  # characters of a failed step's output that are kept
GRACE = 5.0  # seconds from SIGINT, on which scripts and pytest say what they have, to SIGKILL
CACHE = REPO / "build" / "triton"  # compiled kernels, for all steps and later calls
FAILED = ("FAILED", "ERROR")
OUTCOME = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
# a line of `pytest -v`, from pytest-xdist and without it; ids may hold blanks
TOLD = re.compile(rf"^(?:\[gw\d+\] \[ *\d+%\] ({OUTCOME}) (\S+::.*?)|(\S+::.*?) ({OUTCOME})(?: .*)?)\s*$", re.M)


def run(step: Step, seconds: float, shown: bool = True, log: Path | None = None) -> dict[str, Any]:
    """What became of a step that may take `seconds`: its exit code (None: out of time), the seconds it took, what went wrong
    ("problem", absent where nothing did), a benchmark's report, complete or not, what tests gave, and of a step that failed,
    or has no report, the end of its output. The output is added to `log`.

    `shown`: whether the output of a benchmark that succeeds is printed. Ctrl-C ends the step, and is a problem like others.
    """
    for path in step.needs:
        if not path.exists():
            return {"code": None, "seconds": 0.0, "problem": f"it needs {path.name}, which no step has written"}
    kept = _rows_file(step)
    if kept:
        kept.unlink(missing_ok=True)
    begin = time.perf_counter()
    with tempfile.TemporaryFile() if log is None else open(log, "ab+") as file:
        file.seek(0, os.SEEK_END)
        start = file.tell()
        with subprocess.Popen(
            [sys.executable, *step.command], cwd=REPO, env=_environment(), stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:  # fmt: skip
            code: int | None = None
            problem = ""
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                problem = f"out of time after {seconds:.0f} s"
            except KeyboardInterrupt:
                problem = "interrupted"
            finally:
                if code is None:
                    _end(process)
        file.seek(start)
        said = file.read().decode(errors="replace")
    found: dict[str, Any] = {"code": code, "seconds": round(time.perf_counter() - begin, 1)}
    said, report = parted(said) if step.is_benchmark else (said, None)
    if report is None and kept:
        report = _read(kept)
    if not problem and code != 0:
        problem = f"exit code {code}"
    elif not problem and step.is_benchmark and report is None:
        problem = "no JSON object among the lines of its output"
    if problem:
        found["problem"] = problem
    if report is not None:
        found["report"] = report
    if tests := outcomes(said):
        found["tests"] = tests
    if problem or report is None:
        found["output"] = said[-TAIL:]
    if shown or "output" in found:
        print(said[-TAIL:], flush=True)
    return found


def _environment() -> dict[str, str]:
    """That of a step: this repository before what the user has on the path, and one folder of compiled kernels."""
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(REPO), *([before] if before else [])])
    made = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TRITON_CACHE_DIR": str(CACHE)}
    made.pop("TRITON_INTERPRET", None)
    return made


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks a step to end, as Ctrl-C does, and then ends it, with whatever it started, such as a compiler."""
    try:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=GRACE)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    finally:
        with suppress(ProcessLookupError):  # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)


def _rows_file(step: Step) -> Path | None:
    """The file that a benchmark keeps its report in, row by row."""
    return Path(step.command[step.command.index("--json") + 1]) if "--json" in step.command else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def parted(output: str) -> tuple[str, dict[str, Any] | None]:
    """A benchmark's output without its report, and the report: the last line that begins with a JSON object."""
    lines = output.splitlines(keepends=True)
    for number in reversed(range(len(lines))):
        if lines[number].startswith("{"):
            try:
                report, end = json.JSONDecoder().raw_decode(lines[number])
            except json.JSONDecodeError:
                continue
            return "".join([*lines[:number], lines[number][end:].lstrip("\n"), *lines[number + 1 :]]), report
    return output, None


def outcomes(output: str) -> dict[str, Any]:
    """What the lines of `pytest -v` say: how many tests passed and were skipped, and which failed. {} where there are none."""
    found: dict[str, str] = {}
    for match in TOLD.finditer(output):
        outcome, name = match[1] or match[4], match[2] or match[3]
        if found.get(name) not in FAILED:  # an error while a test that passed is cleaned up counts
            found[name] = outcome
    if not found:
        return {}
    many = list(found.values())
    failed = [name for name, outcome in found.items() if outcome in FAILED]
    return {"passed": many.count("PASSED"), "skipped": many.count("SKIPPED"), "failed": failed}
