"""Ctrl-C and SIGTERM: one of them ends a command in a line, however many come."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

BAIZE = [sys.executable, "-m", "baize_engine"]


def test_two_polite_kills_in_a_row_show_no_traceback(folder: Path) -> None:
    """Wherever the second comes while the process ends because of the first."""
    for wait in range(6):
        child = subprocess.Popen(
            [*BAIZE, "chat", str(folder), "--device", "cpu", "--max_new_tokens", "4"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"hello\n")
        child.stdin.flush()
        child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        for _ in range(10**wait):  # some nanoseconds to some milliseconds
            pass
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=120)
        assert b"Traceback" not in err
        assert child.returncode == 130
