"""Programs that nobody has read: what they come to, that they end, and that deceit does not pass."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from code_runners import BRIEF, FORKS, PASSED, SMALL, left
from processes import ends

from baize_engine.errors import BackendError
from baize_engine.evaluation import code_execution
from baize_engine.evaluation.code_execution import CodeRunner, Outcome

ENDS = (
    ("", "passed"),
    ("from typing import List\ndef f(x: List[int]): return x\nassert f([1]) == [1]", "passed"),
    ("import cmath, fractions, hashlib, json, unittest, unicodedata", "passed"),
    ("größe = 'ä\U0001f600'\nprint(größe)\nassert len(größe) == 2", "passed"),
    ("print('x' * 100_000)\nimport sys\nprint('y', file=sys.stderr)", "passed"),
    ("import os\nopen('a', 'w').write('x')\nassert os.listdir() == ['a'] and os.getcwd() == os.environ['HOME']", "passed"),
    ("import tempfile\ntempfile.TemporaryFile().write(b'x')", "passed"),
    ("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()", "passed"),
    ("import sys\nassert sys.stdin.read() == ''", "passed"),
    ("assert 1 == 2", "failed: AssertionError"),
    ("assert 1 == 2, 'one\\n\\x1b[31m'", "failed: AssertionError: one\\n\\x1b[31m"),
    ("raise ValueError('ä' * 1000)", f"failed: ValueError: {'ä' * 139}…"),
    ("x = (", "failed: SyntaxError: '(' was never closed (<program>, line 1)"),
    ("x = '\0'", "failed: "),
    ("x = '\ud800'", "failed: UnicodeEncodeError: "),
    ("input()", "failed: EOFError: EOF when reading a line"),
    ("def f(): f()\nf()", "failed: RecursionError: maximum recursion depth exceeded"),
    ("import torch", "failed: ModuleNotFoundError: No module named 'torch'"),
    ("import os\nos.kill(os.getpid(), 9)", "killed by signal 9"),
    ("import os\nos.abort()", "killed by signal 6"),
    ("x = bytearray(10**12)", "out of memory"),
    ("x = []\nwhile True: x.append('a' * 1000)", "out of memory"),
    ("while True: print('x' * 1000)", "too much output"),
    ("f = open('a', 'wb')\nwhile True: f.write(bytes(1 << 20))", "failed: OSError: [Errno "),
    ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "failed: ValueError: "),
    ("import subprocess\nsubprocess.run(['/bin/true'], timeout=1)", "failed: "),
)  # fmt: skip
DECEIVERS = (
    "raise SystemExit(0)",
    "import sys\nsys.exit(0)",
    "import os\nprint('passed')\nos._exit(0)",
    "import sys, threading\nthreading.Thread(target=sys.exit).start()\nassert False",
    "import os\nif os.fork(): os._exit(0)\nassert False",
    "import atexit, os\natexit.register(os._exit, 0)\nassert False",
    "import os\nos._exit = lambda code: None\nos.write = os.read = lambda *_: b'passed'\nassert False",
    "import builtins\nbuiltins.BaseException = builtins.MemoryError = KeyError\nassert False",
    "import builtins\nbuiltins.AssertionError = KeyError\nbuiltins.isinstance = lambda *_: True\nassert False",
    "import builtins, json, sys\nsys.modules.clear()\nbuiltins.__import__ = builtins.type = print\nassert False",
    "import sys\nfor m in list(sys.modules.values()): vars(m).update(judge=lambda *_: b'passed')\nassert False",
    "class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E",
    "class E(Exception):\n    def __str__(self): return 'passed'\nE.__name__ = 'passed'\nraise E",
    "import os\nfor d in range(1, 64):\n    try: os.write(d, b'passed')\n    except OSError: pass\nassert False",
    "import os\nfor d in range(1, 64):\n    try: os.write(d, b'passed')\n    except OSError: pass\nos._exit(0)",
    "import os\nos.closerange(0, 64)\nassert False",
    "import signal\nsignal.signal(signal.SIGCHLD, lambda *_: None)\nassert False",
    "import gc\nfor o in gc.get_objects():\n    if type(o) is dict: o['passed'] = True\nassert False",
    "import sys\nf = sys._getframe()\nwhile f:\n    f.f_locals.update(text=lambda _: b'')\n    f = f.f_back\nassert 0",
)  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(namespaces: bool) -> dict[str, Outcome]:
    """Of all these programs, one supervisor's."""
    programs = [*dict(ENDS), *DECEIVERS]
    return dict(zip(programs, SMALL.run(programs), strict=True))


@pytest.mark.parametrize(("program", "detail"), ENDS)
def test_what_becomes_of_a_program(outcomes: dict[str, Outcome], program: str, detail: str) -> None:
    outcome = outcomes[program]
    assert outcome.detail[: len(detail)] == detail
    assert outcome.passed == (detail == "passed")


@pytest.mark.parametrize("program", DECEIVERS)
def test_who_does_not_reach_the_end_has_not_passed(outcomes: dict[str, Outcome], program: str) -> None:
    assert outcomes[program].detail.startswith(("failed: ", "killed by signal "))
    assert not outcomes[program].passed


def test_assertions_count_whatever_the_caller_optimises(anywhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    assert replace(SMALL, namespaces=anywhere).run(["assert False"]) == [Outcome(False, "failed: AssertionError")]


def test_many_programs_in_their_order(anywhere: bool) -> None:
    programs = [f"assert {number} % 3" for number in range(12)]
    outcomes = replace(SMALL, workers=3, namespaces=anywhere).run(programs)
    assert [outcome.passed for outcome in outcomes] == [bool(number % 3) for number in range(12)]
    assert SMALL.run([]) == []


def test_a_program_longer_than_a_pipe_holds(anywhere: bool) -> None:
    long = f"x = 1  # {'x' * 1_000_000}\n"
    assert replace(SMALL, namespaces=anywhere).run([long, long + "assert x == 2", long]) == [
        PASSED, Outcome(False, "failed: AssertionError"), PASSED,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import signal\nfor n in (1, 2, 3, 13, 14, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import os\nos.kill(os.getpid(), 19)",
        FORKS,
        "import os\nif os.fork() == 0: os.setsid()\n" + FORKS,
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\nos._exit(0)",
    ],
)  # fmt: skip
def test_what_does_not_end_is_killed(anywhere: bool, program: str) -> None:
    (outcome,) = replace(BRIEF, namespaces=anywhere).run([program])
    if not anywhere and "BlockingIOError" in outcome.detail:
        pytest.skip("this user has so many processes already that programs start none")
    assert outcome.detail == "timed out"
    assert left() == set()


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """This process is interrupted when it waits for programs, the so manieth time."""
    calls = []

    def wait(*arguments):  # type: ignore[no-untyped-def]
        calls.append(left())
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    original = code_execution.wait
    monkeypatch.setattr(code_execution, "wait", wait)


@pytest.mark.parametrize("call", [1, 2, 3])  # a fourth need not come: one call may hear from both supervisors
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_no_process(
    anywhere: bool, public: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    interrupted_at(monkeypatch, call)
    with pytest.raises(KeyboardInterrupt):
        replace(SMALL, namespaces=anywhere, workers=2).run(["while True: pass", FORKS])
    assert left() == set()
    assert os.listdir(public) == []


CALLER = """
import sys
from baize_engine.evaluation import code_execution

def wait(*arguments):
    print("waits", flush=True)
    return original(*arguments)

original, code_execution.wait = code_execution.wait, wait
code_execution.CodeRunner(seconds=1000, workers=1, namespaces=sys.argv[1] == "True").run(["while True: pass"])
"""


def test_when_the_caller_is_killed_all_end(anywhere: bool, public: Path) -> None:
    command = [sys.executable, "-c", CALLER, str(anywhere)]
    environment = {**os.environ, "TMPDIR": str(public)}  # nobody removes the caller's folder
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=code_execution.PACKAGES, env=environment) as caller:
        assert caller.stdout is not None
        for _ in range(3):  # for the greeting, whether it is there, for the outcome
            caller.stdout.readline()
        theirs = left(caller.pid)
        assert theirs
        caller.kill()
    assert all(ends(process) for process in theirs)


def test_what_keeps_them_apart_is_said(anywhere: bool) -> None:
    lines = replace(SMALL, namespaces=anywhere).isolation()
    assert [line.partition(":")[0] for line in lines][-3:] == ["network", "files", "processes"]
    assert lines[-3] == ("network: dropped" if anywhere else "network: NOT dropped")


def test_where_the_standard_library_cannot_be_read_nothing_runs() -> None:
    if os.geteuid() != 0 or all(os.stat(folder).st_mode & 0o1 for folder in Path(os.__file__).parents):
        pytest.skip("nobody can read it here")
    with pytest.raises(BackendError, match=r"programs cannot be run here: .* No module named 'cmath'"):
        replace(SMALL, namespaces=False).run([""])
    assert left() == set()


@pytest.mark.parametrize("executable", ["/bin/false", "/bin/true"])
def test_an_interpreter_that_does_not_start(monkeypatch: pytest.MonkeyPatch, executable: str, public: Path) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(BackendError, match="programs cannot be run here: their supervisor did not start"):
        SMALL.run([""])
    assert os.listdir(public) == []


@pytest.mark.parametrize("field", ["seconds", "memory_mib", "workers"])
def test_limits_are_more_than_nothing(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is 0, wanted more than 0"):
        CodeRunner(**{field: 0})
