"""A result's folder while it is filled: names of unfinished files, removal after a failure, room on the disk.

Until `keep`, `discard` removes everything made here, and `release` leaves it to a run that resumes. Files have the suffix
`.partial` until they are complete on the disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from baize_engine.checkpoint.os_errors import broken_link, gathering, writing
from baize_engine.checkpoint.output_file import OutputFile, sync_folder
from baize_engine.errors import OutputError

PARTIAL = ".partial"


class OutputFolder:
    """A new or empty folder, or with `resume` what a killed run left there. Several threads may open files in it.

    Without `resume` nothing that existed before is changed: a folder that is not empty is refused with OutputError.
    """

    def __init__(self, folder: str | Path, resume: bool = False) -> None:
        self.folder = Path(folder)
        self.resume = resume
        self._files: list[OutputFile] = []
        self._made: list[Path] = []  # files that `discard` removes, newest first
        self._made_folders: list[Path] = []
        self.kept = False  # whether `keep` was called: the folder holds what it was to hold

    def make_folder(self, nbytes: int) -> None:
        """Make the folder, unless it is there and empty. OutputError if it is not, or its disk lacks room for `nbytes`."""
        if not self.resume:
            check_output(self.folder, nbytes)
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        for path in reversed(missing):
            self._made_folders.append(path)  # before mkdir, because Ctrl-C may come between any two lines
            with writing(path, "be made"):
                try:
                    path.mkdir()
                except FileExistsError:
                    self._made_folders.remove(path)  # another writer's
                    raise _appeared(path) from None

    def open_file(self, name: str, nbytes: int) -> OutputFile:
        """Create `name`.partial with room for `nbytes`. With `resume`, one of the same size is opened instead."""
        path, final = self.folder / (name + PARTIAL), self.folder / name
        reopen = False
        if self.resume:
            with writing(path):
                if final.exists() and not path.exists():
                    os.rename(final, path)  # the earlier run was killed between the renames at its end
                reopen = path.exists() and path.stat().st_size == nbytes
                if not reopen:
                    path.unlink(missing_ok=True)
        self._made.append(path)
        try:
            file = OutputFile(path, nbytes, reopen)
        except OutputError as error:
            if error.errno != errno.EEXIST:
                raise
            self._made.remove(path)  # another writer's
            raise _appeared(path) from None
        self._files.append(file)
        return file

    def track(self, path: Path) -> None:
        """Have `discard` remove `path` as well."""
        self._made.append(path)

    def place(self, name: str, content: bytes) -> None:
        """Write a small file, sync it and give it its final name."""
        partial = self.folder / (name + PARTIAL)
        self._made.append(partial)
        with writing(partial), open(partial, "wb" if self.resume else "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.rename(name)

    def rename(self, name: str) -> None:
        """Give a file that is complete on the disk its final name."""
        partial, final = self.folder / (name + PARTIAL), self.folder / name
        self._made.append(final)
        with writing(partial, f"be renamed to {name}"):
            os.rename(partial, final)

    def sync_names(self) -> None:
        """Make the names so far survive a crash of the system."""
        sync_folder(self.folder)

    def keep(self) -> None:
        """Sync all names and keep what was made: `discard` no longer removes it."""
        self.sync_names()
        for path in self._made_folders:
            sync_folder(path.parent)
        self.kept = True

    def release(self) -> None:
        """Close the files and leave everything as it lies, as SIGKILL would: what resumes trusts no byte of it unread."""
        for file in self._files:
            with suppress(OutputError):
                file.close()

    def discard(self) -> None:
        """Close the files and remove everything made here, unless it is kept.

        Tries all of it, whatever fails, and then raises the first error.
        """
        if self.kept:
            self.release()
            return
        errors: list[OutputError] = []
        for file in self._files:
            with gathering(errors):
                file.close()
        for path in reversed(self._made):
            with gathering(errors), writing(path, "be removed"):
                path.unlink(missing_ok=True)
        for path in reversed(self._made_folders):
            with gathering(errors), writing(path, "be removed"):
                path.rmdir()
        for made in (self._files, self._made, self._made_folders):
            made.clear()
        # a folder that was never made, or has another writer's content
        errors = [error for error in errors if error.errno not in (errno.ENOENT, errno.ENOTEMPTY)]
        if errors:
            more = f"; and {len(errors) - 1} more such failure(s)" if len(errors) > 1 else ""
            raise OutputError(errors[0].errno, f"{errors[0]}{more}: remove {self.folder} before you start again")


def _appeared(path: Path) -> OutputError:
    return OutputError(errno.EEXIST, f"{path} has appeared in the meantime: is another recovery writing here?")


def check_output(folder: Path, nbytes: int) -> None:
    """Raise OutputError unless `folder` is absent or empty and its disk has room for `nbytes`. Changes nothing."""
    with writing(folder, "be looked into"):
        there = os.path.lexists(folder)
        if broken := broken_link(folder):
            raise OutputError(errno.ENOENT, broken)
        if there and not folder.is_dir():
            raise OutputError(errno.ENOTDIR, f"{folder} exists and is not a folder")
        found = sorted(path.name for path in folder.iterdir()) if there else []
    if any(name.endswith(PARTIAL) for name in found):
        remedy = "if no other recovery is running there, continue with --resume, or remove the folder and start again"
        reason = f"{folder} holds an unfinished result ({len(found)} files, such as {found[0]}): {remedy}"
        raise OutputError(errno.ENOTEMPTY, reason)
    if found:
        what = f"{len(found)} entries, such as {found[0]}"
        raise OutputError(errno.ENOTEMPTY, f"{folder} is not empty ({what}): wanted a new or empty folder")
    check_room([(folder, nbytes)])


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.2f} MB"


def already_finished(folder: Path) -> OutputError:
    """The error for a `folder` that already holds the wanted result."""
    found = "it holds this very result, finished and unchanged"
    reason = f"{folder} is not empty: {found}, so there is nothing to do (with --resume that is no error)"
    return OutputError(errno.EEXIST, reason)


def check_room(needs: Iterable[tuple[Path, int]]) -> None:
    """Raise OutputError unless every folder can be made and its disk has room.

    needs: (folder, bytes) of each result; folders on one disk need their sum.
    """
    by_disk: dict[int, list[tuple[Path, Path, int]]] = {}
    for folder, nbytes in needs:
        with writing(folder, "be made"):
            existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
            disk = existing.stat().st_dev
        if not existing.is_dir():
            raise OutputError(errno.ENOTDIR, f"{existing} is not a folder, so {folder} cannot be made in it")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(errno.EACCES, f"{existing} is not writable, so {folder} cannot be made")
        by_disk.setdefault(disk, []).append((folder, existing, nbytes))
    for group in by_disk.values():
        with writing(group[0][0], "be measured"):
            stat = os.statvfs(group[0][1])
        free, wanted = stat.f_bavail * stat.f_frsize, sum(nbytes for _, _, nbytes in group)
        if free < wanted:
            folders = ", ".join(str(folder) for folder, _, _ in group)
            sizes = f"{_size(wanted)} are needed and the disk has {_size(free)} free"
            raise OutputError(errno.ENOSPC, f"{folders}: {sizes}")
