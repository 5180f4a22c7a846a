"""Data as downloaded: what is missing says where to get it, what is damaged says where."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from baize_engine.errors import DataError
from baize_engine.evaluation.data import (
    Part,
    json_lines,
    json_value,
    locate,
    read_archive,
    read_parts,
    read_text,
    texts,
)


def test_the_first_name_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("{}")
    assert locate(tmp_path, ("a.json", "b.json"), "example.org") == tmp_path / "b.json"


def test_a_missing_file_says_which_and_where(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        locate(tmp_path, ("a.json", "b.json"), "https://example.org/a")
    assert str(error.value) == f"a.json or b.json is absent from {tmp_path}: download it from https://example.org/a"


def test_text_plain_and_compressed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "a.gz").write_bytes(gzip.compress("ä\n".encode()))
    assert (read_text(tmp_path / "a"), read_text(tmp_path / "a.gz")) == ("one\r\ntwo", "ä\n")


@pytest.mark.parametrize("size", [1, 12, 30])
def test_gzip_data_that_were_cut(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(range(256)))[:size])
    with pytest.raises(DataError, match=r"a\.gz: damaged"):
        read_text(path)


def test_bytes_that_are_not_utf8_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntwo \xff\n")
    with pytest.raises(DataError, match="a, line 2: not UTF-8"):
        read_text(tmp_path / "a")


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_an_archive_in_its_order(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", {"z/1": b"one", "a/2": b"two"})
    assert list(read_archive(path)) == [("z/1", "one"), ("a/2", "two")]


@pytest.mark.parametrize("size", [0, 5, 100])
def test_an_archive_that_was_cut(tmp_path: Path, size: int) -> None:
    path = archive(tmp_path / "a.tar.gz", {"a": bytes(range(128)) * 99})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"a\.tar\.gz: damaged"):
        list(read_archive(path))


def test_json_lines_count_blank_ones() -> None:
    assert list(json_lines('{"a": 1}\n\n{"a": 2}\n', "x")) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"a": 1'])
def test_a_damaged_line_is_named(line: str) -> None:
    with pytest.raises(DataError, match="x, line 2: "):
        list(json_lines(f'{{"a": 1}}\n{line}\n', "x"))


def test_values_that_must_be_texts() -> None:
    assert texts({"a": "1", "b": "2"}, ("b", "a"), "x") == ["2", "1"]
    with pytest.raises(DataError, match="x, line 3: b is absent, wanted a text"):
        texts({"a": "1"}, ("a", "b"), "x, line 3")
    with pytest.raises(DataError, match=r"x: a is .*, wanted a text"):
        texts({"a": 1}, ("a",), "x")


def test_json_that_is_damaged_names_its_line() -> None:
    assert json_value("[1,\n2]", "x") == [1, 2]
    with pytest.raises(DataError, match="x, line 2: not JSON"):
        json_value('{"a":\n}', "x")


FILES = {
    "z/b/2.txt": b"two",
    "z/b/10.txt": b"ten",
    "z/b/.3.txt": b"",
    "z/b/4.csv": b"",
    "z/b/c/5.txt": b"",
    "z/6.txt": b"",
}


def test_files_of_one_ending_in_a_folder(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", FILES)
    assert read_parts(path, "b", ".txt") == {
        "10": Part(f"{path}: z/b/10.txt", "ten"),
        "2": Part(f"{path}: z/b/2.txt", "two"),
    }
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    folder = tmp_path / "z"
    assert list(read_parts(folder, "b", ".txt").items()) == [
        ("10", Part(f"{folder}/b/10.txt", "ten")),
        ("2", Part(f"{folder}/b/2.txt", "two")),
    ]
    for each in (path, folder):
        with pytest.raises(DataError, match=r" has no files b/\*\.json"):
            read_parts(each, "b", ".json")
