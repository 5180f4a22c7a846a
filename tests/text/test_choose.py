"""Which tokenizer a folder gets, and what it is told where it gets none."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import small_model
from fast_files import byte_level, spaced, write

from baize_engine.checkpoint import vocabulary_files
from baize_engine.errors import CheckpointError
from baize_engine.text.choose import tokenizer_in, tokenizer_of, why_none
from baize_engine.text.fast_tokenizer import FastTokenizer
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_sentencepiece_goes_before_the_library(tmp_path: Path) -> None:
    folder = write(tmp_path, spaced())
    assert isinstance(tokenizer_of(folder), FastTokenizer)
    assert isinstance(tokenizer_in(contents(folder), folder), FastTokenizer)
    (folder / "tokenizer.model").write_bytes(small_model())
    assert isinstance(tokenizer_of(folder), SentencePieceTokenizer)
    assert isinstance(tokenizer_in(contents(folder), folder), SentencePieceTokenizer)
    assert why_none(folder) is None


def test_rows_reach_either_kind(tmp_path: Path) -> None:
    for name, content in (("tokenizer.model", small_model()), ("tokenizer.json", byte_level().encode())):
        made = tokenizer_in({name: content}, tmp_path, 1000)
        assert made is not None
        assert made.decode([999]) == ""


def test_a_folder_without_one_says_so(tmp_path: Path) -> None:
    assert tokenizer_of(tmp_path) is None
    assert tokenizer_in({}, tmp_path) is None
    assert why_none(tmp_path) == f"{tmp_path}/tokenizer.model: absent, wanted a sentencepiece model, or tokenizer.json"


def test_a_machine_without_the_library_is_told_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, byte_level())
    monkeypatch.setattr(vocabulary_files, "find_spec", lambda name: None)
    assert tokenizer_of(folder) is None
    assert tokenizer_in(contents(folder), folder) is None
    needed = "text needs the tokenizers library here: pip install 'baize-engine[tokenizers]'"
    assert why_none(folder) == f"{folder}: has tokenizer.json and no tokenizer.model; {needed}"


def test_files_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(vocabulary_files.MAX_FAST + 1)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.* bytes"):
        tokenizer_of(tmp_path)
