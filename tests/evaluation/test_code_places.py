"""Hostile programs do no harm: to processes, files, the network, the environment of others."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from code_runners import PASSED, SMALL, left

from baize_engine.evaluation.code_places import descendants, remove

DAEMON = """
import os, time
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(writing, b"x")
        os.closerange(0, 64)
        time.sleep(1000)
    os._exit(0)
os.read(reading, 1)
"""
ALONE = """
import os
seen = []
for process in range(2, 5000):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        continue
    seen.append(process)
assert seen == [os.getpid()], seen
"""


def test_a_process_that_has_left_its_session_is_killed_with_its_program(namespaces: bool) -> None:
    assert SMALL.run([ALONE, DAEMON, ALONE]) == [PASSED] * 3


def test_so_it_is_where_it_must_be_found(folders: bool) -> None:
    daemon, next_one = replace(SMALL, namespaces=folders).run([DAEMON, ""])
    assert daemon == PASSED or "BlockingIOError" in daemon.detail  # the limit counts all processes of this user
    assert next_one == PASSED
    assert left() == set()


@pytest.mark.parametrize("program", ["import os\nos.kill(os.getppid(), 9)", "import os\nos.kill(os.getppid(), 19)"])
def test_a_program_that_kills_its_parent_is_the_last_harm(anywhere: bool, program: str) -> None:
    """In namespaces no signal arrives; a user's own supervisor is killed, and another takes its place."""
    runner = replace(SMALL, namespaces=anywhere)
    if not anywhere and os.geteuid() != 0 and "19" in program:
        pytest.skip("a supervisor that a program of its user stops is taken for dead after a minute")
    _, next_one = runner.run([program, ""])
    assert next_one == PASSED
    assert left() == set()


def test_no_signal_reaches_the_caller(guarded: bool) -> None:
    outcomes = replace(SMALL, namespaces=guarded).run(
        [f"import os\nos.kill({os.getpid()}, {n})" for n in (0, 9, 15, 19)]
    )
    assert {outcome.detail.partition(":")[2][:18] for outcome in outcomes} <= {
        " ProcessLookupErro",
        " PermissionError: ",
    }


def test_every_process_that_it_sees_is_its_own(namespaces: bool) -> None:
    """Only where there is a namespace of processes: elsewhere this would be the end of the tests, or of the machine."""
    assert SMALL.run(["import os\nos.kill(-1, 9)\nassert False", ""])[1] == PASSED


def test_it_sees_no_file_but_the_standard_library(namespaces: bool, public: Path) -> None:
    (public / "file").write_text("x")
    looks = [
        f"open({str(path)!r})"
        for path in (public / "file", Path(__file__), "/etc/passwd", "/proc/self/maps", "/dev/null")
    ]
    outcomes = SMALL.run(looks)
    assert [outcome.detail[:26] for outcome in outcomes] == ["failed: FileNotFoundError:"] * len(looks)


def test_it_writes_nowhere_but_to_its_folder(guarded: bool, public: Path) -> None:
    (public / "file").write_text("mine")
    os.chmod(public / "file", 0o644)
    folders = ["/", "/usr/lib", os.path.dirname(os.__file__), str(public)]
    writes = [f"open({str(public / 'file')!r}, 'a')", *(f"open({folder + '/new'!r}, 'w')" for folder in folders)]
    outcomes = replace(SMALL, namespaces=guarded).run(writes)
    assert not any(outcome.passed for outcome in outcomes)
    assert {outcome.detail.split(":")[1] for outcome in outcomes} <= {
        " FileNotFoundError",
        " PermissionError",
        " OSError",
    }
    assert ((public / "file").read_text(), os.listdir(public)) == ("mine", ["file"])


DEEP = "import os\nfor _ in range(1200):\n    os.mkdir('d')\n    os.chdir('d')"
LEAVERS = (
    "open('a', 'w').write('x')\nopen('\\udcff', 'w')",
    DEEP,
    "import os\nos.makedirs('a/b/c')\nopen('a/b/d', 'w')\nos.chmod('a/b', 0)\nos.chmod('a', 0)\nos.chmod('.', 0)",
    "import os\nos.symlink('/usr', 'a')\nos.symlink('.', 'b')\nos.mkfifo('c')\nos.mkdir('e')\nos.link('c', 'e/f')",
)


def test_what_it_leaves_is_gone(anywhere: bool, public: Path) -> None:
    look = "import os\nassert os.listdir() == [] and os.listdir(os.environ['TMPDIR']) == []"
    outcomes = replace(SMALL, namespaces=anywhere).run([each for program in LEAVERS for each in (program, look)])
    assert outcomes == [PASSED] * 8
    assert os.listdir(public) == []


def test_it_does_not_see_the_environment(anywhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "treasure")
    program = """
import os
assert {*os.environ} == {"HOME", "TMPDIR", "LANG"}, os.environ
for process in (os.getpid(), os.getppid()):
    try:
        content = open(f"/proc/{process}/environ").read()
    except OSError:
        continue
    assert "treasure" not in content
"""
    assert replace(SMALL, namespaces=anywhere).run([program]) == [PASSED]


def test_nor_that_of_the_caller(guarded: bool) -> None:
    (outcome,) = replace(SMALL, namespaces=guarded).run([f"open('/proc/{os.getpid()}/environ').read()"])
    assert outcome.detail.startswith(("failed: FileNotFoundError: ", "failed: PermissionError: "))


def test_it_holds_no_descriptor_of_the_caller(anywhere: bool, tmp_path: Path) -> None:
    program = """
import os, stat
for descriptor in range(1000):
    try:
        assert stat.S_ISFIFO(os.fstat(descriptor).st_mode), descriptor
    except OSError:
        continue
"""
    with (tmp_path / "file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        assert not stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
        assert replace(SMALL, namespaces=anywhere).run([program]) == [PASSED]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_it_has_no_network(namespaces: bool, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        try:
            listener.bind((address, 0))
        except OSError as error:
            pytest.skip(f"{address}: {error}")
        listener.listen()
        port = listener.getsockname()[1]
        socket.create_connection((address, port)).close()  # who is let, comes through
        listener.accept()[0].close()
        program = f"import socket\nsocket.create_connection(({address!r}, {port}), 5)"
        name = "\0baize" + os.urandom(8).hex()
        with socket.socket(socket.AF_UNIX) as local:
            local.bind(name)
            local.listen()
            other = f"import socket\nsocket.socket(socket.AF_UNIX).connect({name!r})"
            outcomes = SMALL.run([program, other])
    assert [outcome.detail[:16] for outcome in outcomes] == ["failed: OSError:", "failed: Connecti"]


C_LIBRARY = "import ctypes\nlibc = ctypes.CDLL(None)\n"


def test_it_has_no_privileges(anywhere: bool) -> None:
    calls = ("libc.mount(b'none', b'/', b'tmpfs', 0, b'')", "libc.setuid(0)", "libc.sethostname(b'x', 1)")
    outcomes = replace(SMALL, namespaces=anywhere).run([f"{C_LIBRARY}assert {call} == -1" for call in calls])
    assert outcomes == [PASSED] * 3


def test_it_gets_none_in_namespaces_of_its_own_and_does_not_trace_its_supervisor(namespaces: bool) -> None:
    new_users, attach = 0x10000000, 16
    calls = (f"libc.unshare({new_users})", f"libc.ptrace({attach}, 1, 0, 0)")
    assert SMALL.run([f"{C_LIBRARY}assert {call} == -1" for call in calls]) == [PASSED] * 2


def test_its_limits(anywhere: bool) -> None:
    program = """
import resource
for name, most in {"CPU": 130, "AS": 1 << 27, "NPROC": 8, "NOFILE": 64, "FSIZE": 1 << 24, "CORE": 0}.items():
    assert resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) == (most, most), name
"""
    assert replace(SMALL, namespaces=anywhere).run([program]) == [PASSED]


def test_a_folder_is_removed_and_nothing_outside(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    for folder in (inside, inside / "a", inside / "a" / "b", outside):
        (folder / "file").write_text("x")
    for folder in (inside, inside / "a"):
        (folder / "link").symlink_to(outside)
        (folder / "lost").symlink_to("nowhere")
        os.mkfifo(folder / "fifo")
    os.chmod(inside / "a" / "b", 0)
    remove(str(inside))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "outside"]


def test_the_children_of_children_are_found() -> None:
    command = ["/bin/sh", "-c", "sleep 1000 & echo $!; read line; kill $!; wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        sleeper = int(shell.stdout.readline())
        assert descendants(shell.pid) == {sleeper}
        assert descendants(os.getpid()) >= {shell.pid, sleeper}
        assert descendants(sleeper) == set()
