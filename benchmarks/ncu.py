"""Counts the bytes that a step's kernels move to and from a GPU's memory, by ncu (Nsight Compute).

A script is run again as ncu's child; kernels are counted one after the other, at the clocks as they are, and with the caches as
the kernel before left them. ncu's own times are not used: a counted kernel runs alone.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attribution import Launch, attributed
from trace_events import Event

from baize_engine.model.cost import OpCost

METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum")
UNITS = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}
SECONDS = 240  # of the child: loading a model, compiling, and some 50 ms a kernel
SETTINGS = (
    "--csv", "--page", "raw", "--print-units", "base", "--metrics", ",".join(METRICS),
    "--clock-control", "none", "--cache-control", "none", "--profile-from-start", "off",
)  # fmt: skip


class NcuFailed(RuntimeError):
    """ncu cannot count here, or what it said is not understood."""


@dataclass(frozen=True)
class Counted:
    """A kernel and the bytes that it read and wrote. `grid` is empty where ncu does not tell it."""

    kernel: str
    grid: tuple[int, ...]
    read: float
    written: float


def count(words: Sequence[str]) -> list[Counted]:
    """The kernels that a script of Python runs between cudaProfilerStart and Stop; NcuFailed says why it cannot be told.

    `words`: the script and its options.
    """
    found = shutil.which("ncu")
    if found is None:
        raise NcuFailed("ncu is absent (not on the PATH)")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        command = [found, *SETTINGS, "--log-file", str(log), sys.executable, *words]
        code, said = _run(command)
        text = log.read_text(errors="replace") if log.exists() else ""
    if code != 0 or '"ID"' not in text:
        errors = [line for line in f"{text}\n{said}".splitlines() if line.startswith(("==ERROR==", "==WARNING=="))]
        why = (errors or said.strip().splitlines()[-1:] or ["it said nothing"])[0]
        raise NcuFailed(f"ncu ended with exit code {code}: {why}")
    return parse(text)


def _run(command: Sequence[str]) -> tuple[int, str]:
    """The exit code and what was said. Whatever ends the wait ends ncu and the script beneath it, which holds memory."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    ) as process:
        try:
            said = process.communicate(timeout=SECONDS)[0]
            return process.returncode, said
        except subprocess.TimeoutExpired:
            raise NcuFailed(f"ncu was not done after {SECONDS} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def parse(text: str) -> list[Counted]:
    """The kernels of ncu's raw page as CSV: lines of its own, a head, a line of units, and a line for each kernel."""
    begin = text.find('"ID"')
    rows = list(csv.reader(io.StringIO(text[begin:]))) if begin >= 0 else []
    if len(rows) < 2 or not {"Kernel Name", *METRICS} <= set(rows[0]):
        head = ", ".join(rows[0]) if rows else "nothing"
        raise NcuFailed(f"ncu's table has the columns {head}; wanted Kernel Name, {', '.join(METRICS)}")
    units = dict(zip(rows[0], rows[1], strict=False))
    found = []
    for row in rows[2:]:
        if len(row) == len(rows[0]):
            line = dict(zip(rows[0], row, strict=True))
            read, written = (_bytes(line[metric], units[metric]) for metric in METRICS)
            grid = tuple(map(int, re.findall(r"\d+", line.get("Grid Size", ""))))
            found.append(Counted(line["Kernel Name"], grid, read, written))
    return found


def _bytes(value: str, unit: str) -> float:
    try:
        return float(value.replace(",", "")) * UNITS[unit]
    except (KeyError, ValueError):
        raise NcuFailed(f"ncu counted {value!r} {unit!r}, wanted a number of {', '.join(UNITS)}") from None


def rows(counted: Sequence[Counted], expected: Sequence[Launch], costs: Mapping[str, OpCost]) -> list[dict[str, Any]]:
    """A row for each op and kernel: bytes that its calls in a step moved. Mismatch where other kernels were counted.

    The model (model/cost.py) knows ops, not kernels: it stands, beside the sum of the op's kernels, in the op's first row.
    """
    labelled = attributed([Event(each.kernel, 0, 0, each.grid) for each in counted], expected)
    ops: dict[str, dict[str, dict[str, Any]]] = {}
    for (label, _), each in zip(labelled, counted, strict=True):
        empty = {"op": label.op, "kernel": label.kernel, "calls": 0, "read": 0.0, "written": 0.0}
        row = ops.setdefault(label.op, {}).setdefault(label.kernel, empty)
        row["calls"] += 1
        row["read"] += each.read
        row["written"] += each.written
    for op, kernels in ops.items():
        if known := costs.get(op):
            read, written = (sum(row[key] for row in kernels.values()) for key in ("read", "written"))
            next(iter(kernels.values())).update(
                op_read=read, op_written=written, modelled_read=known.read, modelled_written=known.written,
                of_modelled=(read + written) / known.bytes,
            )  # fmt: skip
    return [row for kernels in ops.values() for row in kernels.values()]
