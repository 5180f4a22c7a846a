"""`baize generate --shard I/N` and `baize merge` as they are typed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from commands import generate, read, write

from baize_engine.cli import main

LINES = [
    *({"prompt": f"the cat sat on {i}", "id": i} for i in range(5)),
    {"promt": "b"},
    {"token_ids": [1, 5, 9], "temperature": 0, "n": 2},
]
FLAGS = ("--max_new_tokens", 4, "--temperature", 0.9, "--seed", 4)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "in.jsonl", LINES)


def answer(folder: Path, prompts: Path, numbers: Iterable[int], shards: int, *more: object) -> list[int]:
    out = prompts.parent / "out"
    given = ("--input", prompts, "--output", out, *FLAGS, *more)
    return [generate(folder, *given, "--shard", f"{number}/{shards}") for number in numbers]


@pytest.mark.parametrize("shards", [1, 3, 9])
def test_shards_in_any_order_are_merged_to_the_bytes_of_one_run(
    folder: Path, prompts: Path, tmp_path: Path, shards: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out"
    assert generate(folder, "--input", prompts, "--output", whole, *FLAGS) == 3
    capsys.readouterr()
    codes = answer(folder, prompts, range(shards, 0, -1), shards)
    assert sorted(codes) == [0] * (shards - 1) + [3]
    first = out / f"shard-{shards:04d}-of-{shards:04d}.jsonl"
    told = capsys.readouterr().out.splitlines()
    assert (len(told), told[0].startswith(f"{first}: {-(-len(LINES) // shards)} records, ")) == (shards, True)
    assert main(["merge", str(out)]) == 3
    assert capsys.readouterr().out == f"{out / 'all.jsonl'}: 7 records, 1 of them errors\n"
    assert (out / "all.jsonl").read_bytes() == whole.read_bytes()
    assert main(["merge", str(out), "--output", str(tmp_path / "merged.jsonl")]) == 3
    assert (tmp_path / "merged.jsonl").read_bytes() == whole.read_bytes()
    # one run takes up what was merged
    assert generate(folder, "--input", prompts, "--output", out / "all.jsonl", *FLAGS, "--resume") == 3
    assert len(list(out.iterdir())) == shards + 1


def test_merge_writes_to_standard_output(
    folder: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    prompts = write(tmp_path / "in.jsonl", LINES[:2])
    assert answer(folder, prompts, [1, 2], 2) == [0, 0]
    assert main(["merge", str(tmp_path / "out"), "--output", str(tmp_path / "all.jsonl")]) == 0
    capfdbinary.readouterr()
    assert main(["merge", str(tmp_path / "out"), "--output", "-"]) == 0
    out, err = capfdbinary.readouterr()
    assert out == (tmp_path / "all.jsonl").read_bytes()
    assert err == b"standard output: 2 records, 0 of them errors\n"


def test_a_shard_that_was_cut_short_is_named_and_resumed(
    folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(folder, prompts, [1, 2], 2)
    path = tmp_path / "out" / "shard-0002-of-0002.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "out")]) == 1
    told = f"{tmp_path / 'out'}: shard 2/2 ({path.name}) has answers to 3 of records 3 to 6"
    assert capsys.readouterr().err == f"baize: {told}; its command with --shard 2/2 --resume completes it\n"
    assert answer(folder, prompts, [2], 2) == [1]
    assert f"{path} exists: use --resume to continue it" in capsys.readouterr().err
    assert answer(folder, prompts, [2], 2, "--resume") == [3]
    assert f"{path}: an unfinished line at the end was removed" in capsys.readouterr().err
    assert path.read_bytes() == whole
    assert main(["merge", str(tmp_path / "out")]) == 3
    assert [line["index"] for line in read(tmp_path / "out" / "all.jsonl")] == list(range(len(LINES)))


def test_a_run_of_another_number_input_or_options_is_refused(
    folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(folder, prompts, [1], 2)
    capsys.readouterr()
    assert answer(folder, prompts, [1], 3) == [1]
    assert "has shards of 2, such as shard-0001-of-0002.jsonl: give --shard I/2" in capsys.readouterr().err
    assert answer(folder, prompts, [2], 2, "--quantize", "int8") == [1]
    assert 'with settings.quantize null, and this run has "int8"' in capsys.readouterr().err
    write(prompts, LINES[1:])
    assert answer(folder, prompts, [2], 2) == [1]
    assert "made from another input (7 records, digest" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["shard-0001-of-0002.jsonl"]


def test_an_output_that_is_a_file_is_refused(
    folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()
    assert answer(folder, prompts, [1], 2) == [1]
    assert "out, a file: wanted a folder, in which each shard writes" in capsys.readouterr().err
