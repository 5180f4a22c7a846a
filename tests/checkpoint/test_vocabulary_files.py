"""Vocabulary files of strangers: what is read of them, in little memory, and what is refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import peak_memory
import pytest
import sentencepiece
from assets import SHARED
from fakes import small_model

from baize_engine.checkpoint.vocabulary_files import (
    added_in,
    has_vocabulary,
    model_for,
    pieces,
    token_count,
    why_not_fast,
)
from baize_engine.errors import CheckpointError


def test_pieces_are_sentencepieces_own() -> None:
    models = [small_model()]
    if (SHARED / "tokenizer_32000.model").is_file():
        models.append((SHARED / "tokenizer_32000.model").read_bytes())
    for content in models:
        theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
        assert pieces(content, "x") == [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())]


def test_damaged_models_are_refused_or_read() -> None:
    draw = random.Random(3)
    whole = small_model()
    told = []
    for _ in range(300):
        content = bytearray(whole[: draw.randrange(len(whole))])
        for _ in range(draw.randrange(4)):
            begin, end = (draw.randrange(len(content) or 1) for _ in range(2))
            content[begin:end] = draw.randbytes(draw.randrange(5))
        try:
            assert all(isinstance(piece, str) for piece in pieces(bytes(content), "x"))
        except CheckpointError as error:
            told.append(str(error))
    assert len(told) > 100
    assert all(line.startswith("x: not a sentencepiece model") for line in told)


def test_what_is_read_of_a_tokenizer_json(tmp_path: Path) -> None:
    odd = {"id": 3, "content": "vocab", "special": True}  # its text is that of a key
    model = {"vocab": {"a": 0, '"\\': 1, "é": 2, "more": 9}, "merges": ["a b"] * 99}
    for indent in (None, 2):
        text = json.dumps({"version": "1", "added_tokens": [odd], "model": model}, indent=indent)
        assert added_in(text) == [odd]
        assert has_vocabulary(text, ["a", '"\\', "é"])
        for other in (["a", '"\\', "e"], ["a", '"\\', "é", "x"], ["b"], []):
            assert not has_vocabulary(text, other)
    assert token_count(text.encode()) == 10
    assert token_count(text.replace('"id": 3', '"id": 30').encode()) == 31
    for broken in (
        '{"vocab": ',
        '{"vocab"',
        '{"vocab": [[[',
        '{"vocab": {"a": {}',
        '{"vocab": {"a": 0',
        '{"vocab": ' + "[" * 100_000,
    ):
        assert not has_vocabulary(broken, ["a"])
        assert token_count(broken.encode()) is None
        assert added_in(broken.replace("vocab", "added_tokens")) == []
    (tmp_path / "tokenizer.json").write_bytes(b'{"vocab": \xff}')
    assert model_for(tmp_path, [tmp_path]) is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_a_vocabulary_of_a_stranger_takes_little_memory(tmp_path: Path) -> None:
    """As objects these took 776 MiB."""
    code = """
import sys
from peak_memory import begin_anew, peak_memory
from baize_engine.checkpoint.vocabulary_files import added_in, has_vocabulary
text = sys.argv[1] * int(sys.argv[2])
before = begin_anew()
assert not has_vocabulary('{"vocab": {' + text, ["a"]) and added_in('{"added_tokens": [' + text) == []
print(peak_memory() - before >> 20)
"""
    for piece, count in (("{},", 4 << 20), ('"b":1,', 2 << 20), ('"b":', 3 << 20)):
        done = subprocess.run(
            [sys.executable, "-c", code, piece, str(count)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(peak_memory.__file__).parent,
        )
        assert int(done.stdout) < 128


def test_the_library_is_here() -> None:
    assert why_not_fast() is None
