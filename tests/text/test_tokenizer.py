"""What every kind of tokenizer keeps: valid text only, begin and end ids as asked, special tokens by permission only."""

from __future__ import annotations

import pytest
from fakes import small_model
from fast_files import AWKWARD, byte_level, spaced

from baize_engine.errors import RequestError
from baize_engine.text.fast_tokenizer import FastTokenizer
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer
from baize_engine.text.tokenizer import Tokenizer

KINDS = {
    "sentencepiece": lambda: SentencePieceTokenizer(small_model()),
    "byte_level": lambda: FastTokenizer(byte_level().encode()),
    "spaced": lambda: FastTokenizer(spaced().encode()),
}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]()


def test_texts_must_be_valid(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="text is 5, wanted a string"):
        tokenizer.encode(5)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="lone surrogate at character 1"):
        tokenizer.encode("a\ud800")


def test_begin_and_end_ids_are_added_as_asked(tokenizer: Tokenizer) -> None:
    bare = tokenizer.encode("the cat", add_bos=False)
    assert tokenizer.encode("the cat") == tokenizer.encode("the cat", True) == [tokenizer.bos_id, *bare]
    assert tokenizer.encode("the cat", False, add_eos=None) == bare
    if tokenizer.eos_id is None:
        with pytest.raises(RequestError, match="no EOS token, wanted add_eos=False"):
            tokenizer.encode("the cat", add_eos=True)
    else:
        assert tokenizer.encode("the cat", False, add_eos=True) == [*bare, tokenizer.eos_id]


def test_texts_come_back(tokenizer: Tokenizer) -> None:
    for text in AWKWARD:
        if "\u2581" not in text and "<x>" not in text and not text.startswith(" "):  # the library adds no second space
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_need_permission(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_tokens
    for token in tokenizer.special_tokens:
        token_id = tokenizer.id_of(token)
        assert tokenizer.decode([token_id]) == ""  # type: ignore[list-item]
        assert token_id not in tokenizer.encode(token, add_bos=False)
        assert tokenizer.encode(f"a{token}b", add_bos=False, allow_special=True).count(token_id) == 1  # type: ignore[arg-type]
    assert tokenizer.id_of("no such token") is None
    assert tokenizer.vocab_size > max(tokenizer.id_of(token) or 0 for token in tokenizer.special_tokens)
