"""Ctrl-C and SIGTERM: one of them ends a command in a line, however many come."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from tempfile import TemporaryFile

from commands import MODULE
from forked import Forked


def test_two_polite_kills_in_a_row_show_no_traceback(folder: Path) -> None:
    """Wherever the second comes while the process ends because of the first."""
    for wait in range(6):
        (given, giving), (answers, answering) = os.pipe(), os.pipe()
        with open(giving, "wb", 0) as stdin, open(answers, "rb") as stdout, TemporaryFile() as stderr:
            chat = [*MODULE, "chat", folder, "--device", "cpu", "--max_new_tokens", "4"]
            child = Forked(chat, {0: given, 1: answering, 2: stderr.fileno()})
            os.close(given)
            os.close(answering)
            stdin.write(b"hello\n")
            stdout.readline()
            child.send_signal(signal.SIGTERM)
            for _ in range(10**wait):  # some nanoseconds to some milliseconds
                pass
            child.send_signal(signal.SIGTERM)
            stdin.close()  # a signal right before a read is seen after it
            child.wait(300)
            stderr.seek(0)
            assert b"Traceback" not in stderr.read()
        assert child.returncode == 130
