"""Where programs that nobody has read are run: in namespaces of the system or, where it refuses them, in folders on disk.

Part of the supervisor (`code_child.py`), thus standard library only. Knows nothing of programs but that they have a process
each, a child of this one, and leave files and processes behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

FILE_BYTES = 16 << 20  # of one file; in namespaces of all files together
NOBODY = 65534  # user and group

# linux/sched.h, linux/mount.h, linux/prctl.h
NEW_MOUNTS, NEW_HOST_NAME, NEW_IPC, NEW_USERS = 0x20000, 0x4000000, 0x8000000, 0x10000000
NEW_PROCESSES, NEW_NETWORK = 0x20000000, 0x40000000
READ_ONLY, NO_SETUID, NO_DEVICES, NO_EXEC, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
DETACH = 2
SIGNAL_AT_PARENTS_DEATH, SET_DUMPABLE, SET_SUBREAPER = 1, 4, 36

LIBC = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The system does not let programs run in such a place. The message says why."""


class Place(ABC):
    """lines: what keeps programs there, for the user."""

    lines: tuple[str, ...]

    def __init__(self) -> None:
        call("prctl", SET_DUMPABLE, 0, 0, 0, 0)  # a program of the same user can neither trace nor read this process

    @abstractmethod
    def settle(self, problem: str) -> None:
        """To be called after a program that does no harm has been tried. Refused if it had a problem."""

    @abstractmethod
    def folder(self) -> contextlib.AbstractContextManager[str]:
        """An empty folder that a program may write to; gone afterwards."""

    @abstractmethod
    def kill(self) -> None:
        """Kills a program's process and all that it has started."""


class Namespaces(Place):
    """The constructor returns in the first process of new namespaces; the one that called it ends when that does."""

    lines = (
        "network: dropped",
        "files: only the standard library, read-only, and an empty folder in memory",
        "processes: in a namespace of their own, with which they end",
    )

    def __init__(self, scratch: str) -> None:
        self._report = enter_namespaces()
        try:
            super().__init__()
            make_root(scratch)
        except OSError as error:
            self.settle(str(error))

    def settle(self, problem: str) -> None:
        """Refused is raised in the process that called the constructor; this one ends."""
        if problem:
            os.write(self._report, problem.encode())
            sys.exit()
        os.close(self._report)

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        options = f"size={FILE_BYTES},nr_inodes=4096,mode=700,uid={NOBODY},gid={NOBODY}"
        mount("none", "/program", NO_SETUID | NO_DEVICES | NO_EXEC, "tmpfs", options)
        try:
            yield "/program"
        finally:
            call("umount2", b"/program", DETACH)

    def kill(self) -> None:
        signal_all([-1], signal.SIGKILL)  # all of the namespace but this process, at once: none can fork away from it


class Folders(Place):
    """Folders in `scratch`, which is empty. why: there are no namespaces."""

    def __init__(self, scratch: str, why: str) -> None:
        super().__init__()
        self._root = os.geteuid() == 0
        self.lines = (
            f"namespaces: none ({why})",
            "network: NOT dropped",
            f"files: NOT hidden: programs may do what {'nobody' if self._root else 'your user'} may",
            f"processes: limited, killed as they are found{'' if self._root else '; they may signal yours'}",
        )
        self._path = os.path.join(scratch, "program")
        os.chmod(scratch, 0o711)
        call("prctl", SET_SUBREAPER, 1, 0, 0, 0)  # whose parent has died becomes a child of this process

    def settle(self, problem: str) -> None:
        if problem:
            raise Refused(problem)

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        os.mkdir(self._path, 0o700)
        if self._root:
            os.chown(self._path, NOBODY, NOBODY)
        try:
            yield self._path
        finally:
            remove(self._path)

    def kill(self) -> None:
        stopped: set[int] = set()
        while found := descendants(os.getpid()) - stopped:  # a stopped process starts no other
            signal_all(found, signal.SIGSTOP)
            stopped |= found
        signal_all(stopped, signal.SIGKILL)


def enter_namespaces() -> int:
    """Returns in the first process of new namespaces: where it says why they will not do, or which it closes if they do.

    Refused in the calling process, if the system or the new process says no. The new user namespace maps root to itself and
    nobody to nobody where this is root, else nobody to the user.
    """
    report_in, report_out = os.pipe()
    mapped_in, mapped_out = os.pipe()
    caller = os.getpid()
    outside = os.fork()
    if outside == 0:  # out of the namespace of processes that it makes: its children are in it
        die_with_parent(caller)
        close(report_in, mapped_out)
        flags = NEW_USERS | NEW_PROCESSES | NEW_NETWORK | NEW_MOUNTS | NEW_IPC | NEW_HOST_NAME
        try:
            call("unshare", flags)
            os.write(report_out, b"\0")
            first = os.read(mapped_in, 1) and os.fork() == 0
        except OSError as error:
            os.write(report_out, str(error).encode())
            sys.exit()
        if first:
            die_with_parent(0)
            os.close(mapped_in)
            return report_out
        os.close(report_out)
        reap(0)
        sys.exit()
    close(report_out, mapped_in)
    reason = os.read(report_in, 1000)
    if reason == b"\0":
        try:
            map_users(outside)
            os.write(mapped_out, b"\0")
            reason = os.read(report_in, 1000)
        except OSError as error:
            reason = f"users of the namespace: {error}".encode()
    close(report_in, mapped_out)
    os.waitpid(outside, 0)
    if not reason:
        sys.exit()
    raise Refused(reason.decode(errors="replace"))


def map_users(process: int) -> None:
    """Gives a process's new user namespace its users and groups."""
    root, user, group = os.geteuid() == 0, os.geteuid(), os.getegid()
    write_file(f"/proc/{process}/setgroups", "allow" if root else "deny")
    for name, own in (("uid_map", user), ("gid_map", group)):
        write_file(f"/proc/{process}/{name}", f"0 0 1\n{NOBODY} {NOBODY} 1" if root else f"{NOBODY} {own} 1")


def make_root(scratch: str) -> None:
    """Leaves nothing of the file system but the libraries, and the empty folder /program."""
    with contextlib.suppress(OSError):  # some containers have /proc/sys read-only
        write_file("/proc/sys/user/max_user_namespaces", "0")  # none within, where a program would have all privileges
    mount("none", "/", RECURSIVE | PRIVATE)
    mount("none", scratch, NO_SETUID | NO_DEVICES, "tmpfs", "size=1m,mode=755")
    prefixes = {"/", "/usr", sys.base_prefix, sys.base_exec_prefix}
    for folder in sorted(
        {os.path.join(prefix, name) for prefix in prefixes for name in ("lib", "lib64", sys.platlibdir)}
    ):
        if os.path.isdir(folder):
            target = scratch + folder
            os.makedirs(target, exist_ok=True)
            mount(folder, target, BIND | RECURSIVE)
            kept = os.statvfs(folder).f_flag & NO_EXEC  # which a user namespace cannot take away
            mount("none", target, REMOUNT | BIND | READ_ONLY | NO_SETUID | NO_DEVICES | kept)
    os.mkdir(scratch + "/program")
    mount("none", scratch, REMOUNT | BIND | READ_ONLY | NO_SETUID | NO_DEVICES)
    os.chdir(scratch)
    call("pivot_root", b".", b".")  # the old root now lies upon the new one
    call("umount2", b".", DETACH)
    os.chdir("/")


def write_file(path: str, content: str) -> None:
    """In one call of the system, as the kernel wants it of its own files."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, content.encode())
    finally:
        os.close(descriptor)


def mount(source: str, target: str, flags: int, kind: str = "", options: str = "") -> None:
    try:
        call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None


def call(function: str, *arguments: object) -> None:
    """Calls a function of the C library that returns -1 for an error; OSError."""
    if getattr(LIBC, function)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def die_with_parent(parent: int) -> None:
    """Ends this process when its parent, of that number, does; 0 for one outside of the namespace, which has none here."""
    call("prctl", SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def descendants(process: int) -> set[int]:
    """Children, their children, and so on."""
    children: dict[int, set[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with (
                contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError),
                open(f"/proc/{name}/stat", "rb") as file,
            ):
                parent = int(file.read().rpartition(b")")[2].split()[1])  # the name before it may hold anything
                children.setdefault(parent, set()).add(int(name))
    found: set[int] = set()
    new = children.get(process, set())
    while new:
        found |= new
        new = {child for parent in new for child in children.get(parent, ())}
    return found


def signal_all(processes: Iterable[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def reap(child: int, kill: Callable[[], None] = lambda: None) -> int:
    """Waits until this process has no children; the status of the one that is asked about.

    kill: ends those that are there, before each wait: a process that is stopped in the middle of a fork may still complete it,
    after the others were looked for, and its child comes to this process when it dies.
    """
    found = 0
    with contextlib.suppress(ChildProcessError):
        while True:
            kill()
            process, status = os.wait()
            if process == child:
                found = status
    return found


def remove(folder: str) -> None:
    """Removes a folder with all in it, however deep: `shutil.rmtree` holds a descriptor for each level."""
    moved, prefix = 0, os.urandom(8).hex()
    os.chmod(folder, 0o700)
    while names := os.listdir(folder):
        for name in names:
            path = os.path.join(folder, name)
            if not is_folder(path):
                os.unlink(path)
                continue
            os.chmod(path, 0o700)
            for inner in os.listdir(path):
                inside = os.path.join(path, inner)
                if is_folder(inside):
                    os.chmod(inside, 0o700)  # to be moved, it is written to
                    os.rename(inside, os.path.join(folder, f"{prefix}{moved}"))
                    moved += 1
                else:
                    os.unlink(inside)
            os.rmdir(path)
    os.rmdir(folder)


def is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
