"""A recovery killed at any moment and resumed gives the result of an uninterrupted one, and redoes nothing finished."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import slow_baize
import tiny

from baize_engine import recover, verify
from baize_engine.errors import CheckpointError, OutputError
from baize_engine.recovery.journal import JOURNAL_NAME


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    cfg = tiny.config(hidden_size=256, intermediate_size=1024, num_hidden_layers=12)
    return tiny.write_pair(tmp_path_factory.mktemp("pair"), cfg=cfg)


@pytest.fixture(scope="module")
def whole(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("whole") / "tuned"
    return recover(*pair, folder, device="cpu", progress=False).manifest.tensors


def kill_after(pair: tuple[Path, Path], out: Path, lines: int) -> int:
    """Starts a recovery and kills it (SIGKILL) once its journal has `lines` lines; the tensors it had noted."""
    paths = ["--path_raw", pair[0], "--path_diff", pair[1], "--path_tuned", out]
    hold = slow_baize.NOTED if lines else slow_baize.BEGUN, max(lines, 1)
    child, told = slow_baize.start(0.02, "recover", "--device", "cpu", *paths, hold=hold)
    slow_baize.wait_for(told, *hold)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    os.close(told)
    journal = out / JOURNAL_NAME
    return journal.read_bytes().count(b'"name"') if journal.exists() else -1


@pytest.mark.parametrize("lines", [0, 1, 20, 60])
def test_killed_then_resumed(pair: tuple[Path, Path], whole: dict, tmp_path: Path, lines: int) -> None:
    out = tmp_path / "tuned"
    noted = kill_after(pair, out, lines)
    assert noted >= 0, "the run ended before it could be killed"
    assert not any(path.name.endswith((".safetensors", ".json")) for path in out.iterdir())
    with pytest.raises(OutputError, match="--resume"):
        recover(*pair, out, device="cpu", progress=False)
    with pytest.raises(CheckpointError, match=f"{out} holds an unfinished result: finish it with --resume"):
        verify(out)
    result = recover(*pair, out, device="cpu", progress=False, resume=True)
    assert result.resumed >= noted - 1  # the last line may have been torn
    assert result.manifest.tensors == whole
    assert verify(out).ok
    assert not list(out.glob("*.partial"))


def test_damage_to_finished_tensors_is_redone(pair: tuple[Path, Path], whole: dict, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    kill_after(pair, out, 30)
    (partial,) = out.glob("model*.partial")
    content = bytearray(partial.read_bytes())
    content[4096 : len(content) // 2] = bytes(len(content) // 2 - 4096)  # as a power cut would leave it
    partial.write_bytes(content)
    (out / JOURNAL_NAME).write_bytes((out / JOURNAL_NAME).read_bytes() + b'\n{"name": "torn')
    result = recover(*pair, out, device="cpu", progress=False, resume=True)
    assert result.manifest.tensors == whole
    assert verify(out).ok


def test_other_sources_are_refused_untouched(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    kill_after(pair, out, 5)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(OutputError, match="other sources or options"):
        recover(*pair, out, dtype="bfloat16", device="cpu", progress=False, resume=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_killed_between_the_last_renames(pair: tuple[Path, Path], whole: dict, tmp_path: Path) -> None:
    out, copy = tmp_path / "tuned", tmp_path / "copy"
    kill_after(pair, out, 30)
    shutil.copytree(out, copy)
    recover(*pair, out, device="cpu", progress=False, resume=True)
    for path in out.iterdir():  # names in place, but the journal of the killed run still there
        shutil.copy(path, copy / path.name)
    (copy / "model.safetensors.partial").unlink()
    assert recover(*pair, copy, device="cpu", progress=False, resume=True).manifest.tensors == whole
    assert verify(copy).ok
    assert not list(copy.glob("*.partial"))


def test_resume_of_nothing_is_a_plain_run(pair: tuple[Path, Path], whole: dict, tmp_path: Path) -> None:
    result = recover(*pair, tmp_path / "tuned", device="cpu", progress=False, resume=True)
    assert (result.resumed, result.manifest.tensors) == (0, whole)
