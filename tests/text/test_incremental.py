"""IncrementalDecoder against sentencepiece: the pieces joined are its text, and no piece ends within a character."""

from __future__ import annotations

import random

import pytest
import sentencepiece
from assets import shared
from fakes import FIRST_BYTE, ByteTokenizer, small_model

from baize_engine.text.incremental import IncrementalDecoder
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer
from baize_engine.text.tokenizer import Tokenizer


def pieces(tokenizer: Tokenizer | ByteTokenizer, ids: list[int], context: list[int] | None = None) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, context or [])
    return [*(decoder.push(i) for i in ids), decoder.flush()]


def models() -> list:
    return [
        pytest.param(lambda: small_model(), id="small"),
        pytest.param(lambda: small_model(remove_extra_whitespaces=True), id="small-trims"),
        pytest.param(lambda: small_model(add_dummy_prefix=False), id="small-no-dummy"),
        pytest.param(lambda: shared("assets/tokenizer_32000.model").read_bytes(), id="32000"),
        pytest.param(lambda: shared("assets/stories260K/tokenizer.model").read_bytes(), id="512"),
    ]


@pytest.mark.parametrize("load", models())
def test_agrees_with_sentencepiece_on_random_ids(load) -> None:  # type: ignore[no-untyped-def]
    model = load()
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = SentencePieceTokenizer(model)
    rng = random.Random(1)
    space = oracle.piece_to_id("\u2581")
    few = [0, 1, 2, space, *range(3, 12), *(3 + b for b in "é€😀\u2581".encode()), 3 + 0xFF, 3 + 0x20, 280, 281, 290]
    for trial in range(1500):
        pool = few if trial % 2 else range(oracle.get_piece_size())
        ids = [rng.choice(pool) for _ in range(rng.randint(0, 12))]
        assert "".join(pieces(tokenizer, ids)) == oracle.decode(ids), ids


@pytest.mark.parametrize("text", ["héllo wörld", "日本語 text", "a😀b", "  two  spaces ", "line\n\nline\t", "ﬁne"])
@pytest.mark.parametrize("load", models()[:1] + models()[3:])
def test_text_survives_encoding_and_streaming(load, text: str) -> None:  # type: ignore[no-untyped-def]
    tokenizer = SentencePieceTokenizer(load())
    ids = tokenizer.encode(text)
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids) == text
    for cut in range(len(ids)):
        head = tokenizer.decode(ids[:cut])
        if "\ufffd" not in head:  # else the cut is inside a character
            assert head + "".join(pieces(tokenizer, ids[cut:], ids[:cut])) == text


def test_waits_for_the_whole_character() -> None:
    tokenizer = ByteTokenizer()
    assert pieces(tokenizer, tokenizer.encode("a😀é", add_bos=False)) == ["a", "", "", "", "😀", "", "é", ""]


def test_a_character_that_never_ends_is_replaced_at_the_end() -> None:
    assert pieces(ByteTokenizer(), [FIRST_BYTE + 0xF0, FIRST_BYTE + 0x9F]) == ["", "", "\ufffd\ufffd"]


def test_bytes_that_cannot_be_text_are_replaced_at_once() -> None:
    ids = [FIRST_BYTE + b for b in (0xFF, 0xE2, 0x41, 0xC0, 0x80)]
    assert pieces(ByteTokenizer(), ids) == ["\ufffd", "", "\ufffdA", "\ufffd", "\ufffd", ""]


def test_a_continuation_keeps_its_leading_space() -> None:
    tokenizer = SentencePieceTokenizer(small_model())
    prompt, more = tokenizer.encode("the cat"), tokenizer.encode("sat", add_bos=False)
    assert "".join(pieces(tokenizer, more)) == "sat"
    assert "".join(pieces(tokenizer, more, prompt)) == " sat"
    assert "".join(pieces(tokenizer, more, [tokenizer.bos_id])) == "sat"
