"""Several finetunes of one base in one pass: each result as if alone, the base read once, one refusal for all."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import slow_baize
import tiny
from folders import snapshot
from grown_diffs import write_diffs

from baize_engine import recover, verify
from baize_engine.checkpoint import writer as writing
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.errors import BaizeError, MismatchError, OutputError, RequestError
from baize_engine.recovery.journal import JOURNAL_NAME
from baize_engine.recovery.memory import WORKERS

SETTINGS = {"device": "cpu", "progress": False}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.write_pair(tmp_path)[0]


@pytest.mark.parametrize("hidden", [32, 1028])
def test_each_result_is_the_one_of_a_run_alone(tmp_path: Path, hidden: int) -> None:
    cfg = tiny.config(hidden_size=hidden, num_hidden_layers=1)
    base, _ = tiny.write_pair(tmp_path, cfg=cfg)
    diffs = write_diffs(tmp_path, cfg)
    outs = [tmp_path / "out" / str(n) for n in range(3)]
    together = recover(base, diffs, outs, **SETTINGS)
    for diff, out, result in zip(diffs, outs, together, strict=True):
        alone = recover(base, diff, tmp_path / "alone" / out.name, **SETTINGS)
        assert result.folder == out
        assert snapshot(out) == snapshot(alone.folder)
        assert verify(out).ok
    assert [result.extra_rows for result in together] == [1, 0, 3]


def test_the_base_is_read_once(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffs = write_diffs(tmp_path, tiny.config())
    read, done = {}, TensorReader.read

    def counting(self: TensorReader, begin: int, end: int, buffer: memoryview) -> memoryview:
        read[self.entry.path.parent] = read.get(self.entry.path.parent, 0) + (end - begin) * self.size
        return done(self, begin, end, buffer)

    monkeypatch.setattr("baize_engine.recovery.checks.norm_ratio", lambda work: 0.0)
    monkeypatch.setattr("baize_engine.recovery.checks.why_diff", lambda index: None)
    monkeypatch.setattr(TensorReader, "read", counting)
    recover(base, diffs, [tmp_path / f"o{n}" for n in range(3)], **SETTINGS, new_rows="mean")
    for folder in (base, *diffs):
        entries = read_index(folder).entries.values()
        assert read[folder] == sum(entry.nbytes for entry in entries if not entry.name.endswith("inv_freq"))


def unfit_config(diffs: list[Path], outs: list[Path]) -> None:
    config = (diffs[2] / "config.json").read_text()
    (diffs[2] / "config.json").write_text(config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))


def whole_model(diffs: list[Path], outs: list[Path]) -> None:
    shutil.rmtree(diffs[1])
    tiny.write_model(diffs[1], tiny.config(), tiny.state(tiny.config(), 3))


def full_output(diffs: list[Path], outs: list[Path]) -> None:
    outs[1].mkdir(parents=True)
    (outs[1] / "thesis.txt").write_text("mine")


REFUSALS = {
    "config": (unfit_config, MismatchError, "rms_norm_eps"),
    "whole model": (whole_model, MismatchError, "diff1 looks like a whole model"),
    "output in use": (full_output, OutputError, "1 is not empty"),
    "missing shard": (lambda d, o: next(d[2].glob("*.safetensors")).unlink(), BaizeError, "shards are missing"),
    "the same output twice": (lambda d, o: o.__setitem__(2, o[0] / ".." / "0"), OutputError, "named for two results"),
    "an output too few": (lambda d, o: o.pop(), RequestError, r"path_diff names 3 and path_tuned 2 folder"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_one_refusal_comes_before_the_first_byte_of_all(tmp_path: Path, base: Path, case: str) -> None:
    change, error, message = REFUSALS[case]
    diffs, outs = write_diffs(tmp_path, tiny.config()), [tmp_path / "out" / str(n) for n in range(3)]
    change(diffs, outs)
    before = snapshot(tmp_path)
    with pytest.raises(error, match=message):
        recover(base, diffs, outs, **SETTINGS)
    assert snapshot(tmp_path) == before
    assert not outs[0].exists()


def test_room_is_needed_for_all_together(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffs, outs = write_diffs(tmp_path, tiny.config()), [tmp_path / f"o{n}" for n in range(3)]
    size = sum(entry.numel for entry in read_index(diffs[0]).entries.values()) * 2
    real = os.statvfs(tmp_path)
    free = type("Free", (), {"f_bavail": 2 * size, "f_frsize": 1})()  # room for two of them
    monkeypatch.setattr(os, "statvfs", lambda path: free)
    recover(base, diffs[1], tmp_path / "alone", **SETTINGS)
    with pytest.raises(OutputError, match=r"o0, .*o1, .*o2: .* .B are needed"):
        recover(base, diffs, outs, **SETTINGS)
    assert not any(out.exists() for out in outs)
    assert real.f_bavail > 0


def test_room_is_needed_for_the_files_beside_too(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written last: without room for them the whole work would be lost."""
    (diff,) = write_diffs(tmp_path, tiny.config(), (0,))
    (diff / "tokenizer.json").write_bytes(bytes(100_000))
    size = (recover(base, diff, tmp_path / "first", **SETTINGS).folder / "model.safetensors").stat().st_size
    free = type("Free", (), {"f_bavail": size + 50_000, "f_frsize": 1})()
    monkeypatch.setattr(os, "statvfs", lambda path: free)
    with pytest.raises(OutputError, match=r"o: .* .B are needed"):
        recover(base, diff, tmp_path / "o", **SETTINGS)
    assert not (tmp_path / "o").exists()


def test_a_failure_in_the_middle_leaves_nothing_of_any(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffs, outs = write_diffs(tmp_path, tiny.config()), [tmp_path / f"o{n}" for n in range(3)]
    write, calls = writing.CheckpointWriter.write, []

    def failing(self: writing.CheckpointWriter, name: str, offset: int, view: memoryview) -> None:
        calls.append(name)
        if len(calls) == 20:
            raise OSError(28, "No space left on device", name)
        write(self, name, offset, view)

    monkeypatch.setattr(writing.CheckpointWriter, "write", failing)
    before = snapshot(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        recover(base, diffs, outs, **SETTINGS)
    assert snapshot(tmp_path) == before
    assert not any(out.exists() for out in outs)


def command(base: Path, diffs: list[Path], outs: list[Path]) -> list[str]:
    pairs = [word for d, o in zip(diffs, outs, strict=True) for word in ("--path_diff", str(d), "--path_tuned", str(o))]
    return ["recover", "--path_raw", str(base), *pairs, "--device", "cpu", "--quiet"]


def test_killed_then_resumed(tmp_path: Path) -> None:
    cfg = tiny.config(hidden_size=128, num_hidden_layers=6)
    base, _ = tiny.write_pair(tmp_path, cfg=cfg)
    diffs, outs = write_diffs(tmp_path, cfg), [tmp_path / f"o{n}" for n in range(3)]
    hold = slow_baize.NOTED, 10 * len(outs)
    child, told = slow_baize.start(0.02, *command(base, diffs, outs), hold=hold)
    slow_baize.wait_for(told, *hold)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    os.close(told)
    journals = [out / JOURNAL_NAME for out in outs]
    assert all(path.exists() for path in journals), "the run ended before it could be killed"
    resumed = recover(base, diffs, outs, **SETTINGS, resume=True)
    assert sum(result.resumed for result in resumed) >= 9 * len(outs)  # each last line may have been torn
    for number, (diff, result) in enumerate(zip(diffs, resumed, strict=True)):
        assert result.resumed >= 10 - WORKERS  # each worker notes its tensor for one result after the other
        assert result.manifest.tensors == recover(base, diff, tmp_path / f"alone{number}", **SETTINGS).manifest.tensors
        assert not list(result.folder.glob("*.partial"))


def test_killed_after_the_first_result_was_finished(tmp_path: Path, base: Path) -> None:
    """One folder finished, one as a killed run leaves it, one not begun."""
    diffs, outs = write_diffs(tmp_path, tiny.config()), [tmp_path / f"o{n}" for n in range(3)]
    whole = recover(base, diffs, [tmp_path / f"w{n}" for n in range(3)], **SETTINGS)
    shutil.copytree(whole[0].folder, outs[0])
    before = snapshot(outs[0])
    with pytest.raises(OutputError, match="not empty"):
        recover(base, diffs, outs, **SETTINGS)
    results = recover(base, diffs, outs, **SETTINGS, resume=True)
    assert [result.resumed > 0 for result in results] == [True, False, False]
    assert snapshot(outs[0]) == before
    assert [result.manifest.tensors for result in results] == [result.manifest.tensors for result in whole]
    spoilt = next(outs[0].glob("*.safetensors"))
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"x")
    with pytest.raises(OutputError, match=r"o0 holds a finished result that is not as it was written: lm_head|model"):
        recover(base, diffs[0], outs[0], **SETTINGS, resume=True)
    with pytest.raises(OutputError, match="not empty"):  # finished, of other options
        recover(base, diffs[1], outs[1], dtype="bfloat16", **SETTINGS, resume=True)
