"""Files that change while they are read are noticed: nothing is left of their result."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny

from baize_engine import recover
from baize_engine.errors import CheckpointError
from baize_engine.recovery import stream as streaming
from baize_engine.recovery.sources import Sources


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)
    run = streaming.stream

    def meddling(*args: object, **settings: object) -> object:
        records = run(*args, **settings)
        victim = sorted(base.glob("*.bin"))[0]
        victim.write_bytes(victim.read_bytes() + b"x")
        return records

    monkeypatch.setattr("baize_engine.recovery.run.stream", meddling)
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert not (tmp_path / "tuned").exists()


def test_only_what_was_asked_for_is_checked(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_bytes(b"12345")
    sources = Sources({path: path.stat() for path in paths}, base=paths[:1])
    (record,) = sources.records["base"]
    assert (record.name, record.bytes, record.sha256) == ("a", 5, None)
    sources.check()
    stat = paths[1].stat()
    paths[1].write_bytes(b"54321")
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # dated back: the inode's time of change tells
    sources.check(paths[:1])
    with pytest.raises(CheckpointError, match=rf"{paths[1]} changed while it was being read \(5 bytes before, 5 now\)"):
        sources.check()
    paths[0].unlink()
    with pytest.raises(CheckpointError, match=f"{paths[0]} is absent"):
        sources.check(paths[:1])
