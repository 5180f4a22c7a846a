"""Which records a shard answers, and whether files of shards belong together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import shard_runs
from shard_runs import RUN, SURVEY, answer, header

from baize_engine.batch.records import Survey
from baize_engine.batch.shards import Shard, ShardHeader, check_folder, shard_files
from baize_engine.errors import OutputError, RequestError


@pytest.mark.parametrize("records", [0, 1, 7, 8, 9, 100_003])
@pytest.mark.parametrize("shards", [1, 2, 7, 8, 64])
def test_parts_are_contiguous_whole_and_balanced_to_one_record(records: int, shards: int) -> None:
    parts = [Shard(number, shards).part(records) for number in range(1, shards + 1)]
    assert [index for part in parts for index in part] == list(range(records))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_shard_is_spelled_i_of_n_from_one() -> None:
    assert Shard.parse("3/8") == Shard(3, 8)
    assert (str(Shard(3, 8)), Shard(3, 8).file_name) == ("3/8", "shard-0003-of-0008.jsonl")
    assert Shard(12345, 20000).file_name == "shard-12345-of-20000.jsonl"


@pytest.mark.parametrize(
    ("spelled", "told"),
    [
        ("0/8", "there is no shard 0/8: shards are counted from 1, wanted 1/8 to 8/8"),
        ("9/8", "there is no shard 9/8: shards are counted from 1, wanted 1/8 to 8/8"),
        ("1/0", "there is no shard 1/0"),
        *(
            (wrong, "wanted I/N, such as 3/8")
            for wrong in ("", "3", "3/", "/8", "-1/8", "3/8/2", "a/b", "3 /8", "1/99999999")
        ),
    ],
)
def test_other_spellings_and_numbers_are_refused(spelled: str, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        Shard.parse(spelled)


def test_a_header_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = answer(tmp_path, header(2, 4))
    assert ShardHeader.read(path) == header(2, 4)
    whole = path.read_bytes()
    for cut in (0, 1, len(header(2, 4).line()) - 1):
        path.write_bytes(whole[:cut])
        assert ShardHeader.read(path) is None


@pytest.mark.parametrize("content", [b"\n", b"{}\n", b'{"index": 0, "input": "0", "completions": []}\n', b"\xff\n"])
def test_a_file_that_begins_otherwise_is_no_shard(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shard-0001-of-0002.jsonl"
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"shard-0001-of-0002\.jsonl does not begin with a shard's header"):
        check_folder(tmp_path, header(2, 2))


def test_a_renamed_shard_is_told(tmp_path: Path) -> None:
    answer(tmp_path, header(1, 2)).rename(tmp_path / "shard-0002-of-0002.jsonl")
    with pytest.raises(OutputError, match="has the answers of shard 1/2: was it renamed"):
        check_folder(tmp_path, header(1, 2))


@pytest.mark.parametrize("name", ["shard-00001-of-0002.jsonl", "shard-0003-of-0002.jsonl", "shard-0000-of-0002.jsonl"])
def test_a_name_that_no_shard_has_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(OutputError, match=name):
        shard_files(tmp_path)


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text("{}\n")
    (tmp_path / "shard-0001-of-0003.jsonl.bak").touch()
    path = answer(tmp_path, header(1, 2))
    assert shard_files(tmp_path) == {Shard(1, 2): path}


def test_another_number_of_shards_is_refused_by_name(tmp_path: Path) -> None:
    answer(tmp_path, header(1, 2))
    with pytest.raises(OutputError, match=r"has shards of 2, such as shard-0001-of-0002.jsonl: give --shard I/2, or"):
        answer(tmp_path, header(1, 3))
    (tmp_path / "shard-0001-of-0003.jsonl").touch()
    with pytest.raises(OutputError, match="has shards of 2 and 3, wanted all of the same number of shards"):
        shard_files(tmp_path)


@pytest.mark.parametrize("number", [1, 2], ids=["its own file", "another's file"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"survey": Survey(9, "0" * 16)}, r"made from another input \(10 records, .* than this run \(9 records, "),
        ({"survey": replace(SURVEY, records_digest="1" * 16)}, "another input .*digest 0000.*digest 1111"),
        ({"run": {**RUN, "settings": {"quantize": "int8"}}}, 'with settings.quantize null, and this run has "int8"$'),
        ({"run": {**RUN, "params": {"seed": 4}}}, "with params.seed 3, and this run has 4$"),
        (
            {"run": {**RUN, "files": [["model.safetensors", 5, 8], RUN["files"][1]]}},
            r'files \[\["model.safetensors", 5, 7\]\], and this run has \[\["model.safetensors", 5, 8\]\]; copies .*rsync -a',
        ),
    ],
)
def test_another_input_or_run_is_refused_by_what_differs(tmp_path: Path, number: int, changes: dict, told: str) -> None:
    path = answer(tmp_path, header(1, 2))
    before = path.read_bytes()
    with pytest.raises(OutputError, match=told):
        answer(tmp_path, replace(header(number, 2), **changes), resume=True)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_shard_killed_at_any_byte_is_taken_up(tmp_path: Path) -> None:
    path = answer(tmp_path, header(2, 3))
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        answer(tmp_path, header(2, 3), resume=True)
        assert path.read_bytes() == whole


def test_a_shard_without_records_has_a_file_and_one_without_answers_yet_has_none(tmp_path: Path) -> None:
    one = Survey(1, "0" * 16)
    empty = answer(tmp_path, header(1, 2, one))
    assert empty.read_bytes() == header(1, 2, one).line()
    answer(tmp_path, header(1, 2, one), resume=True)
    assert empty.read_bytes() == header(1, 2, one).line()
    assert not answer(tmp_path, header(2, 2, one), most=0).exists()


def test_a_line_of_another_record_is_named_by_the_records_number(tmp_path: Path) -> None:
    path = answer(tmp_path, header(2, 2))
    first, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, *lines[1:]]))
    with pytest.raises(OutputError, match="line 2 is not the answer to record 5"):
        answer(tmp_path, header(2, 2), resume=True)
    path.write_bytes(b"".join([first, *lines, shard_runs.heads(range(1))[0].encode()]))
    with pytest.raises(OutputError, match=r"line 7 is there, but the input has only 5 record\(s\)"):
        answer(tmp_path, header(2, 2), resume=True)
