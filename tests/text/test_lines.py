"""Encoding by lines gives the ids of the whole text, and each line is encoded once."""

from __future__ import annotations

from pathlib import Path

import pytest
from assets import shared
from fakes import small_model
from hypothesis import given
from hypothesis import strategies as st
from made_up import few

from baize_engine.errors import RequestError
from baize_engine.text.choose import tokenizer_of
from baize_engine.text.lines import LineEncoder
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

TEXTS = [
    "",
    "\n",
    "the cat",
    "the cat\n",
    "\n\nthe\n cat \n",
    "</s>\n<s>the\n</s>",
    "caf\u00e9\r\n\u65e5\u672c\n",
    "a\u2028b\x0bc\n",
]
TOKENIZER = SentencePieceTokenizer(small_model())
ENCODERS = {special: LineEncoder(TOKENIZER, special) for special in (False, True)}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_whole_text(text: str, special: bool) -> None:
    assert ENCODERS[special].by_lines
    for _ in range(2):
        assert ENCODERS[special].encode(text) == TOKENIZER.encode(text, add_bos=False, allow_special=special)


@few
@given(
    st.lists(st.sampled_from(["\n", " ", "the", "cat", "</s>", "\u2581", "\u00e9", "\t", "a"]), max_size=12).map(
        "".join
    )
)
def test_ids_of_made_up_texts(text: str) -> None:
    for special, encoder in ENCODERS.items():
        assert encoder.encode(text) == TOKENIZER.encode(text, add_bos=False, allow_special=special)


def test_llamas_own_vocabulary() -> None:
    tokenizer = SentencePieceTokenizer(shared("assets/tokenizer_32000.model").read_bytes())
    encoder = LineEncoder(tokenizer)
    assert encoder.by_lines
    text = "Question: What is 2 + 2?\nA. 3\nB.  4\n\nAnswer: B\n\n\n  Question"
    assert encoder.encode(text) == tokenizer.encode(text, add_bos=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"user_defined_symbols": "\n\n"},  # found across lines
        {"user_defined_symbols": "a\nb"},
        {"byte_fallback": False, "vocab_size": 100},  # neighbouring unknown characters become one
        {"normalization_rule_name": "nmt_nfkc"},  # line breaks become spaces
        {"remove_extra_whitespaces": True},  # at a text's ends
        {"treat_whitespace_as_suffix": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_vocabularies_get_whole_texts(changes: dict[str, object]) -> None:
    tokenizer = SentencePieceTokenizer(small_model(**changes))
    encoder = LineEncoder(tokenizer)
    assert not encoder.by_lines
    for text in TEXTS:
        assert encoder.encode(text) == tokenizer.encode(text, add_bos=False)


def test_a_tokenizer_json_gets_whole_texts(tmp_path: Path) -> None:
    """Its tokens may swallow the white space beside them."""
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    from fast_files import llama_3

    tokenizer = tokenizer_of(llama_3(tmp_path))
    assert tokenizer is not None
    encoder = LineEncoder(tokenizer)
    assert not encoder.by_lines
    assert encoder.encode("a\n <y>\nb") == tokenizer.encode("a\n <y>\nb", add_bos=False)


def test_a_line_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = LineEncoder(TOKENIZER)
    seen: list[str] = []
    encode = TOKENIZER.encode
    monkeypatch.setattr(TOKENIZER, "encode", lambda text, **how: seen.append(text) or encode(text, **how))
    encoder.encode("the\ncat\ncat\n")
    encoder.encode("the\ncat\nsat")
    assert seen == ["the\n", "cat\n", "sat"]


def test_what_no_tokenizer_encodes_is_refused() -> None:
    with pytest.raises(RequestError, match="lone surrogate"):
        ENCODERS[False].encode("a\n\ud800")
