"""Merging shards: the bytes of one run, and nothing where a shard is missing, incomplete or another run's."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import shard_runs
from shard_runs import SURVEY, answer, header

from baize_engine.batch.merge import complete_shards, pieces, write_answers
from baize_engine.batch.records import Survey
from baize_engine.batch.shards import ShardHeader
from baize_engine.errors import BaizeError, CheckpointError, OutputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of three shards, complete."""
    made = tmp_path / "out"
    made.mkdir()
    for number in (3, 1, 2):
        answer(made, header(number, 3))
    return made


@pytest.mark.parametrize("shards", [1, 2, 3, 10, 13])
def test_the_result_has_the_bytes_of_one_run(tmp_path: Path, shards: int) -> None:
    for number in range(1, shards + 1):
        answer(tmp_path, header(number, shards))
    found = complete_shards(tmp_path)
    assert (sum(each.records for each in found), sum(each.failed for each in found)) == (10, 1)
    write_answers(found, tmp_path / "all.jsonl")
    assert (tmp_path / "all.jsonl").read_bytes() == shard_runs.unsharded(tmp_path / "whole.jsonl")
    assert len(list(tmp_path.iterdir())) == shards + 2


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            Path.unlink,
            r"out: shard 2/3 \(shard-0002-of-0003.jsonl\) is missing: records 3 to 5; .* --shard 2/3 --resume",
        ),
        (lambda path: path.write_bytes(b""), r"shard 2/3 \(.*\) is missing: records 3 to 5"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"shard 2/3 \(.*\) has answers to 2 of records 3 to 5"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b'"index": 4', b'"index": 3')),
            "line 3 is not the answer to record 4: was it edited",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"completions", b"completion")),
            "line 2 is not the ans",
        ),
        (lambda path: path.write_bytes(path.read_bytes() + b'{"index": 6}\n'), "line 5 is not the end: was it edited"),
    ],
    ids=["missing", "empty", "cut", "twice", "no answer", "too many"],
)
def test_what_is_missing_or_wrong_is_named(folder: Path, spoil: Callable[[Path], object], told: str) -> None:
    spoil(folder / "shard-0002-of-0003.jsonl")
    with pytest.raises(BaizeError, match=told):
        complete_shards(folder)


def test_shards_of_another_input_are_named(folder: Path) -> None:
    path = folder / "shard-0002-of-0003.jsonl"
    path.unlink()
    other = header(2, 3, Survey(SURVEY.records, "1" * 16))
    apart = folder / "apart"
    apart.mkdir()
    answer(apart, other).rename(path)  # as if it was made on another machine
    with pytest.raises(OutputError, match=r"shard-0002-of-0003\.jsonl was made from another input .* shard-0001-of"):
        complete_shards(folder)


def test_a_folder_without_shards_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no answers of shards, wanted what generate"):
        complete_shards(tmp_path)


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    shards, path = complete_shards(folder), tmp_path / "all.jsonl"
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"all\.jsonl exists: name another --output"):
        write_answers(shards, path)
    assert path.read_text() == "mine"
    path.unlink()
    partial = tmp_path / "all.jsonl.partial"
    partial.write_text("another's")
    with pytest.raises(OutputError, match=r"all\.jsonl\.partial exists: another merge is writing it, or was killed"):
        write_answers(shards, path)
    assert (path.exists(), partial.read_text()) == (False, "another's")


def test_a_failure_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, path = complete_shards(folder), tmp_path / "all.jsonl"
    whole = shards[1].path.read_bytes()
    shards[1].path.write_bytes(whole[:-3])
    with pytest.raises(
        CheckpointError, match=r"shard-0002-of-0003\.jsonl lost its last 3 bytes while it was being copied"
    ):
        write_answers(shards, path)
    shards[1].path.write_bytes(whole)
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(full))
        with pytest.raises(OutputError, match=r"all\.jsonl\.partial cannot be written \(No space left"):
            write_answers(shards, path)
    assert [each.name for each in tmp_path.iterdir()] == [folder.name]
    write_answers(shards, path)


def test_memory_does_not_grow_with_the_answers(tmp_path: Path) -> None:
    count = 3000
    wanted = ShardHeader(header(1, 1).shard, Survey(count, "0" * 16), {})
    with (tmp_path / wanted.shard.file_name).open("wb") as file:
        file.write(wanted.line())
        for index in range(count):
            file.write(b'{"index": %d, "input": "0", "completions": ["%s"]}\n' % (index, b"x" * 10_000))
    tracemalloc.start()
    size = sum(map(len, pieces(complete_shards(tmp_path))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 30e6
    assert peak < 5e6
