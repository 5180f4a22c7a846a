"""Forked processes of Python are, to whoever starts them, as those that start anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from assets import REPO
from preloaded import Forked

SHOWN = "import os, sys; print(sys.argv, os.getcwd(), os.environ.get('MINE'), sys.path[0], input(), flush=True); "


def outcomes(tmp_path: Path, words: list[str], **settings: object) -> list[tuple[str, str, int]]:
    """What both say on stdout and stderr, and their exit codes."""
    found = []
    for start in (subprocess.Popen, Forked):
        process = start(
            [sys.executable, *words], cwd=tmp_path, env={**os.environ, "MINE": "5"}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings,
        )  # fmt: skip
        with process:
            found.append((*process.communicate("given", timeout=300), process.returncode))
    return found


@pytest.mark.parametrize(("end", "code"), [("", 0), ("sys.exit(3)", 3), ("sys.exit('why')", 1), ("os._exit(4)", 4)])
def test_codes_and_streams(end: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SHOWN + end)
    for words in (["-c", SHOWN + end, "a", "b"], ["script.py", "a", "b"], ["-m", "script", "a"]):
        anew, forked = outcomes(tmp_path, words)
        assert forked == anew
        assert forked[2] == code
    assert (forked[1] == "why\n") == ("why" in end)


def test_a_traceback(tmp_path: Path) -> None:
    anew, forked = outcomes(tmp_path, ["-c", "1 / 0"])
    assert forked[2] == anew[2] == 1
    assert forked[1].splitlines()[-1] == anew[1].splitlines()[-1] == "ZeroDivisionError: division by zero"


# starts another of its kind, says both numbers and waits
TWO = """
import subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"], stdout=-1)
print(other.stdout.readline(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_the_group(number: int) -> None:
    process = Forked(
        [sys.executable, "-c", TWO], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"b'begun\\n'\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0)
        os.killpg(process.pid, number)
        said = process.stdout.read()  # until both have ended
    assert process.returncode == -number
    assert said.count(b"KeyboardInterrupt") == (2 if number == signal.SIGINT else 0)


def test_what_a_fork_has_imported() -> None:
    shown = "import sys; print('torch' in sys.modules, [name for name in sys.modules if name.startswith('baize')])"
    with Forked([sys.executable, "-c", shown], stdout=subprocess.PIPE, cwd=REPO) as process:
        assert process.communicate() == (b"True []\n", None)
    assert process.peak > 50 << 20
