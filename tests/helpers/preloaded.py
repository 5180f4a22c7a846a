"""Python processes forked from one that has imported torch: a script's own work, without the second that its imports take.

`Forked` stands for `subprocess.Popen`. A command of this interpreter becomes a fork, with the arguments, environment, folder
and streams that it is given, and so do those that it starts itself. Nothing of this repository is imported before. Other
commands start as always, and so does what must import triton itself (TRITON_INTERPRET). What would begin a session begins a
process group, to which belongs what it starts: a session's processes could not be forked from one that is outside.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

IMPORTED = ("numpy", "safetensors.torch", "torch", "triton")
REQUEST = 1 << 17  # bytes of one, at most
INSTALLED = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
Popen = subprocess.Popen
ASKED = inspect.signature(Popen._execute_child)
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
STREAMS = ("p2cread", "c2pwrite", "errwrite")  # the child's
server_of_this_fork: bytes | None = None  # where this process is one


class Forked(Popen):
    """A process, forked where that is possible."""

    imported: tuple[str, ...] = IMPORTED
    peak: int  # of a fork that has ended: bytes it had resident at the most, those of what it was forked from included
    _line: socket.socket | None = None  # to the process that waits for the fork, which tells its number, then its end

    def _execute_child(self, *given: Any, **named: Any) -> None:
        asked = ASKED.bind(self, *given, **named).arguments
        command, env = asked["args"], dict(os.environ if asked["env"] is None else asked["env"])
        if not can_fork(command, env):
            super()._execute_child(*given, **named)
            return
        words = [os.fspath(word) for word in command[1:] if word != "-u"]  # streams are flushed at each line
        cwd = os.fspath(asked["cwd"] or os.getcwd())
        group = 0 if asked["start_new_session"] else os.getpgrp() if server_of_this_fork else None
        request = json.dumps([self.imported, group, words, cwd, env]).encode()
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.connect(server_of_this_fork or server())
        streams = [number if (fd := asked[name]) == -1 else fd for number, name in enumerate(STREAMS)]
        socket.send_fds(self._line, [request], streams)
        self.pid, self._child_created = int(self._line.recv(16)), True
        self._close_pipe_fds(*(asked[name] for name in PIPES))

    def _wait(self, timeout: float | None) -> int:
        if self._line is None:
            return super()._wait(timeout)
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            status, self.peak = json.loads(self._line.recv(64))
            self.returncode = os.waitstatus_to_exitcode(status)
            self._line.close()
        return self.returncode

    def _internal_poll(self, *given: Any, **named: Any) -> int | None:
        if self._line is None:
            return super()._internal_poll(*given, **named)
        try:
            return self._wait(0)
        except subprocess.TimeoutExpired:
            return None


class WithTransformers(Forked):
    """One forked from a process that has imported transformers too, where it is installed: another two seconds."""

    imported = (*IMPORTED, *(["transformers.models.llama.modeling_llama"] if find_spec("transformers") else []))


def can_fork(command: Any, env: Mapping[str, str]) -> bool:
    """Whether it is this interpreter with a script, -c or -m, and triton may be imported already."""
    if isinstance(command, (str, bytes)) or command[0] != sys.executable or env.get("TRITON_INTERPRET"):
        return False
    return command[1] in ("-c", "-m", "-u") or not os.fspath(command[1]).startswith("-")


@cache
def server() -> bytes:
    """The address of the process that forks, which ends with this one."""
    code = "import sys; sys.path.append(sys.argv[1]); import preloaded as p; p.end(p.serve(int(sys.argv[2])))"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # the system gives it a name
        listener.listen()
        process = Popen(
            [sys.executable, "-c", code, str(Path(__file__).parent), str(listener.fileno())],
            stdin=subprocess.PIPE, env=env, pass_fds=[listener.fileno()], start_new_session=True,
        )  # fmt: skip
        atexit.register(process.communicate)
        address: bytes = listener.getsockname()
        return address


def serve(number: int) -> Callable[[], None]:
    """Forks for whoever asks the socket of this number, until stdin ends. Returns in each fork, with what it is to do."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=number) as listener:
        address = listener.getsockname()
        while True:
            if sys.stdin in select.select([sys.stdin, listener], [], [])[0]:
                sys.exit()
            line, _ = listener.accept()
            request, streams, _, _ = socket.recv_fds(line, REQUEST, len(STREAMS))
            imported, group, *asked = json.loads(request)
            for name in imported:
                import_module(name)
            gc.freeze()  # a collection in a fork would copy all that was imported
            if os.fork() == 0:
                break
            for each in (line.detach(), *streams):
                os.close(each)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if group is not None:
        os.setpgid(pid, group)  # in both, before either goes on
    if pid:  # this one waits, and tells
        for fd in streams:
            os.close(fd)
        line.send(str(pid).encode())
        _, status, usage = os.wait4(pid, 0)
        line.send(json.dumps([status, usage.ru_maxrss * 1024]).encode())
        os._exit(0)
    line.close()
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    return partial(become, address, *asked)


def become(address: bytes, words: Sequence[str], cwd: str, env: dict[str, str]) -> None:
    """In the fork: runs what was asked for, as `python WORDS` does."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    global server_of_this_fork
    server_of_this_fork = address
    subprocess.Popen = Forked  # type: ignore[misc]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", 1), open(2, "w", 1)  # noqa: SIM115
    how, *rest = words
    first = {"-c": "", "-m": cwd}.get(how, str(Path(how).resolve().parent))
    sys.path[:] = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *INSTALLED]
    if how == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif how == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(how, run_name="__main__")


def end(work: Callable[[], None]) -> None:
    """Does `work` and ends the process as the interpreter does, but for taking torch's modules apart, which takes 0.3 s."""
    code: int = 1
    try:
        work()
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        else:
            code = error.code or 0
    except BaseException as error:  # noqa: BLE001  as the interpreter says it
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)
