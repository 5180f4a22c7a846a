"""The files that a run reads, held against what they were before their headers were read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from baize_engine.checkpoint.manifest import SourceFile
from baize_engine.checkpoint.os_errors import stat_of
from baize_engine.errors import CheckpointError


class HasStats(Protocol):
    """An index of a checkpoint, or a payload: what the system said of each file when it was first looked at."""

    @property
    def stats(self) -> Mapping[Path, os.stat_result]: ...


class Sources:
    """What each file of some indexes was at the beginning: its size and its times of change.

    The time of the inode's change, which no program can set, tells a content that was changed and dated back, and a new
    file of the same name. The inode's number does not count: on some network filesystems it changes by itself.
    """

    def __init__(self, indexes: Iterable[HasStats]) -> None:
        self._before = {path: stat for index in indexes for path, stat in index.stats.items()}

    def records(self, paths: Iterable[Path]) -> list[SourceFile]:
        """Name, size and time of files that are among these, as they were, for the manifest."""
        return [SourceFile(path.name, self._before[path].st_size, self._before[path].st_mtime_ns) for path in paths]

    def check(self, paths: Iterable[Path] | None = None) -> None:
        """CheckpointError if one of `paths`, or of all, has changed since."""
        for path in self._before if paths is None else paths:
            before, now = self._before[path], stat_of(path)
            if _identity(before) != _identity(now):
                raise CheckpointError(
                    f"{path} changed while it was read ({before.st_size} bytes before, {now.st_size} now)"
                )


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
