"""Small runners of programs that nobody has read, and what is left of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from baize_engine.evaluation.code_execution import CodeRunner, Outcome

SMALL = CodeRunner(seconds=120, memory_mib=128, workers=1)  # what ends takes far less, also on a busy machine
BRIEF = replace(SMALL, seconds=0.5)  # for programs that do not end
PASSED = Outcome(True, "passed")
# Starts as many processes as it may. Run on a system that does not limit them, it is the end of that system.
FORKS = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"


def left(caller: int | None = None) -> set[int]:
    """Processes of the runners of a caller, this process if None: all have its number in their command."""
    marks = b"baize_engine.evaluation.code_child", b"main(%d," % (caller or os.getpid())
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if all(mark in command for mark in marks):
            found.add(int(path.parent.name))
    return found
