"""FastTokenizer: transformers' ids and texts for awkward strings, no special id from text, and files that are refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from fast_files import AWKWARD, BOS, EOS, EOT, byte_level, llama_3, spaced, special, write

from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.errors import CheckpointError, RequestError
from baize_engine.text.fast_tokenizer import FastTokenizer
from baize_engine.text.incremental import IncrementalDecoder
from baize_engine.text.tokenizer import Tokenizer
from baize_engine.text.choose import tokenizer_of

transformers = pytest.importorskip("transformers")

KINDS = {
    "llama_3": lambda: byte_level(),
    "llama_3_nfc": lambda: byte_level(normalizer="NFC"),
    "no_begin_token": lambda: byte_level(post=None),
    **{kind: (lambda kind=kind: spaced(kind)) for kind in ("first", "always", "prepend", "metaspace", "never")},
}


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path, KINDS[request.param]())


def both(folder: Path) -> tuple[Tokenizer, Any]:
    ours = tokenizer_of(folder)
    assert isinstance(ours, FastTokenizer)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


def test_ids_are_transformers_own(folder: Path) -> None:
    ours, theirs = both(folder)
    assert theirs.is_fast
    for text in AWKWARD:
        assert ours.encode(text, allow_special=True) == theirs.encode(text), text
        assert ours.encode(text) == theirs.encode(text, split_special_tokens=True), text
        bare = ours.encode(text, add_bos=False)
        assert bare == theirs.encode(text, split_special_tokens=True, add_special_tokens=False)
        assert not {ours.id_of(token) for token in ours.special_tokens} & {*bare} - {ours.id_of("<unk>")}


def test_texts_are_transformers_own_whole_and_piece_by_piece(folder: Path) -> None:
    ours, theirs = both(folder)
    for text in AWKWARD:
        ids = ours.encode(text, allow_special=True)
        wanted = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids) == wanted, text
        for at in range(0, len(ids), 7):
            decoder = IncrementalDecoder(ours, ids[:at])
            rest = "".join(map(decoder.push, ids[at:])) + decoder.flush()
            assert wanted.endswith(rest)


def test_any_ids_have_transformers_text(folder: Path) -> None:
    """But for broken runs of byte pieces, of which it keeps no character: see `incremental`."""
    ours, theirs = both(folder)
    draw = random.Random(5)
    compared = 0
    for _ in range(400):
        ids = [draw.randrange(ours.vocab_size) for _ in range(draw.randrange(12))]
        wanted = theirs.decode(ids, skip_special_tokens=True)
        if "\ufffd" not in wanted or ours.rules.errors == "replace":
            assert ours.decode(ids) == wanted
            compared += 1
    assert compared > 50
