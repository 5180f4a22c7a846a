"""A result under way: Ctrl-C, a source that changes, a disk that is full, an earlier run of other files."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from published_xor import files, publish_by_file, run

from baize_engine import verify
from baize_engine.errors import CheckpointError, OutputError
from baize_engine.recovery.xor import decode


def test_ctrl_c_leaves_nothing(base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    plain = decode._plain

    def pressed(job: object, piece: int, progress: object) -> object:
        if piece == decode.PIECE:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(job, piece, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "_plain", pressed)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(base, payload, tmp_path / "new/out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "new").exists()


def test_room_is_needed_before(base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    usual = os.statvfs(tmp_path)
    full = os.statvfs_result([1 if n == 4 else value for n, value in enumerate(usual)])
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(OutputError, match="B are needed and the disk has"):
        run(base, payload, tmp_path / "out")


def test_a_source_that_changes_meanwhile(
    base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    plain = decode._plain

    def touched(job: object, piece: int, progress: object) -> object:
        if piece == decode.PIECE:
            os.utime(base / "config.json", ns=(1, 1))
        return plain(job, piece, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "_plain", touched)
    with pytest.raises(CheckpointError, match=r"base/config.json changed while it was being read"):
        run(base, payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resume_takes_only_the_same_files(base: Path, tuned: Path, tmp_path: Path) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    out = tmp_path / "out"
    run(base, payload, out)
    shutil.copytree(out, tmp_path / "left")
    (tmp_path / "left/baize_manifest.json").unlink()
    (tmp_path / "left/baize_journal.partial").write_text('{"run": "another"}\n')
    before = files(tmp_path / "left")
    with pytest.raises(OutputError, match="other sources or options"):
        run(base, payload, tmp_path / "left", resume=True)
    assert files(tmp_path / "left") == before
    with pytest.raises(CheckpointError, match="finish it with --resume"):
        verify(tmp_path / "left")


def test_a_result_of_other_files_is_kept(base: Path, tuned: Path, tmp_path: Path) -> None:
    run(base, publish_by_file(tuned, base, tmp_path / "payload"), tmp_path / "out")
    other, before = publish_by_file(tuned, base, tmp_path / "other", packed=True), files(tmp_path / "out")
    for resume in (False, True):
        with pytest.raises(OutputError, match="out is not empty: it holds a finished result of other sources"):
            run(base, other, tmp_path / "out", resume=resume)
    assert files(tmp_path / "out") == before
    (tmp_path / "out/baize_manifest.json").write_text("{}")  # not one of ours
    with pytest.raises(CheckpointError, match=r"out/baize_manifest\.json: not a manifest of this tool"):
        run(base, tmp_path / "payload", tmp_path / "out")
