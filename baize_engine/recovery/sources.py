"""The files that a run reads, compared with their state before their headers were read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from baize_engine.checkpoint.manifest import SourceFile
from baize_engine.checkpoint.os_errors import stat_of
from baize_engine.errors import CheckpointError


class Sources:
    """The sizes and times of change that the files of some indexes had at the beginning, from their `stats`.

    The inode's time of change, which no program can set, reveals content that was changed and dated back, and a new file of
    the same name. The inode's number does not count: on some network filesystems it changes by itself.
    """

    def __init__(self, *stats: Mapping[Path, os.stat_result], **roles: Iterable[Path]) -> None:
        """`roles`: which of the files the manifest lists, by their role in it."""
        self._before = {path: stat for each in stats for path, stat in each.items()}
        self.records = {role: [self._record(path) for path in paths] for role, paths in roles.items()}

    def _record(self, path: Path) -> SourceFile:
        """Name, size and time of a file, as they were at the beginning."""
        return SourceFile(path.name, self._before[path].st_size, self._before[path].st_mtime_ns)

    def check(self, paths: Iterable[Path] | None = None) -> None:
        """CheckpointError if one of `paths`, or of all files, has changed since."""
        for path in self._before if paths is None else paths:
            before, now = self._before[path], stat_of(path)
            if _identity(before) != _identity(now):
                raise CheckpointError(
                    f"{path} changed while it was being read ({before.st_size} bytes before, {now.st_size} now)"
                )


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
