"""The journal of a running recovery: which tensors are done, so that a killed run can be resumed.

It lies in the output folder as `baize_journal.partial`: one JSON line that names the run, then one line a finished
tensor. Nothing in it is believed on resuming: a tensor counts as done only if its bytes on disk still hash to the line,
so that neither a torn line nor data that a power cut took can pass.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from baize_engine.checkpoint.manifest import SourceFile, TensorRecord, tensor_record
from baize_engine.checkpoint.writer import PARTIAL, ShardLayout
from baize_engine.errors import OutputError
from baize_engine.recovery.plan import Plan

JOURNAL_NAME = "baize_journal" + PARTIAL


def fingerprint(
    work: Plan, layout: tuple[ShardLayout, ...], sources: dict[str, list[SourceFile]], subtract: bool
) -> str:
    """Names a run: the same sources (name, size, time), operation and layout give the same string, others do not."""
    identity = {
        "operation": "make_diff" if subtract else "recover",
        "tensors": [(job.name, job.dtype, job.other.shape) for job in work.jobs],
        "headers": [hashlib.sha256(shard.header).hexdigest() for shard in layout],
        "sources": {role: [asdict(file) for file in files] for role, files in sources.items()},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class Journal:
    """An open, locked journal. `finished` holds what an earlier run of the same fingerprint left; `add` appends."""

    def __init__(self, folder: Path, run: str) -> None:
        self.path = folder / JOURNAL_NAME
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self.finished = self._read(run)
        except BaseException:
            os.close(self._fd)
            raise

    def _read(self, run: str) -> dict[str, TensorRecord]:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(errno.EBUSY, f"{self.path.parent}: another recovery is writing here") from None
        lines = [line for line in self.path.read_bytes().split(b"\n") if line]
        records: dict[str, TensorRecord] = {}
        if not lines:
            self._append({"run": run})
            return records
        for number, line in enumerate(lines):
            try:
                item = json.loads(line)
                if number == 0:
                    known = item["run"]
                else:
                    records[item["name"]] = tensor_record(item["record"])
            except (ValueError, KeyError, TypeError):
                if number == 0:
                    known = None
                continue  # the line that was being written when the run was killed
        if known != run:
            raise OutputError(
                errno.ENOTEMPTY,
                f"{self.path.parent} holds an unfinished result of other sources or options: "
                "resume with the same ones, or remove the folder",
            )
        return records

    def add(self, name: str, record: TensorRecord) -> None:
        """Notes that `name` is written."""
        self._append({"name": name, "record": asdict(record)})

    def _append(self, item: dict[str, object]) -> None:
        # one write, so that threads do not mix; a line break before it, so that a torn line spoils only itself
        os.write(self._fd, b"\n" + json.dumps(item).encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)
