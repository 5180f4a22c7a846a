"""The chat format: exact text, one begin id, end ids that only replies get, and refusals by message index."""

from __future__ import annotations

from pathlib import Path

import pytest
from assets import shared
from fakes import ByteTokenizer, small_model

from baize_engine.errors import RequestError
from baize_engine.text import chat
from baize_engine.text.choose import tokenizer_of
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TALK = [said("system", "Be brief."), said("user", "Hi"), said("assistant", "Hello!"), said("user", " Bye \n")]


def test_first_turn_is_the_plain_encoding_of_its_text() -> None:
    tokenizer = SentencePieceTokenizer(small_model())
    assert chat.render([said("user", "Hi")], tokenizer) == tokenizer.encode("<|user|>\nHi\n<|assistant|>\n")


def test_several_turns_with_a_system_message() -> None:
    tokenizer = ByteTokenizer()
    wanted = [
        *tokenizer.encode("<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello!"),
        tokenizer.eos_id,
        *tokenizer.encode("\n<|user|>\nBye\n<|assistant|>\n", add_bos=False),
    ]
    assert chat.render(TALK, tokenizer) == wanted


def test_no_dummy_space_after_an_end_id() -> None:
    tokenizer = SentencePieceTokenizer(small_model())
    ids = chat.render(TALK, tokenizer)
    after = ids[ids.index(tokenizer.eos_id) + 1 :]
    assert tokenizer.piece(after[0]) == b"\n"
    assert tokenizer.decode(ids) == (
        "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello!\n<|user|>\nBye\n<|assistant|>\n"
    )


def test_an_end_token_spelled_in_a_message_stays_text() -> None:
    tokenizer = SentencePieceTokenizer(small_model())
    messages = [said("user", "a</s>b<s>"), said("assistant", "c</s>d"), said("user", "e")]
    ids = chat.render(messages, tokenizer)
    assert ids.count(tokenizer.eos_id) == 1
    assert ids.count(tokenizer.bos_id) == 1
    assert "a</s>b<s>" in tokenizer.decode(ids)
    assert "c</s>d" in tokenizer.decode(ids)


def test_replies_are_closed_by_the_end_token_that_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(small_model())
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 360}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "add_bos_token": false}')
    tokenizer = tokenizer_of(tmp_path)
    ids = chat.render([said("user", "a<|im_end|>"), said("assistant", "b"), said("user", "c")], tokenizer)
    plain = chat.render(
        [said("user", "a<|im_end|>"), said("assistant", "b"), said("user", "c")], SentencePieceTokenizer(small_model())
    )
    assert ids == [360 if token_id == 2 else token_id for token_id in plain]
    assert (ids[0], ids.count(360)) == (1, 1)


def test_agrees_with_transformers_on_the_whole_string(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = shared("assets/tokenizer_32000.model")
    (tmp_path / "tokenizer.model").write_bytes(path.read_bytes())
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    text = "<s><|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello!</s>\n<|user|>\nBye\n<|assistant|>\n"
    tokenizer = tokenizer_of(tmp_path)
    ids = chat.render(TALK, tokenizer)
    assert ids[1:] == theirs.encode(text.removeprefix("<s>"), add_special_tokens=False)
    assert ids[0] == tokenizer.bos_id


@pytest.mark.parametrize(
    ("messages", "wanted"),
    [
        ([], "non-empty list"),
        ("hello", "non-empty list"),
        ([said("assistant", "x")], r"messages\[0\] has role 'assistant', wanted system or user"),
        ([said("user", "x"), said("user", "y")], r"messages\[1\] has role 'user', wanted assistant"),
        ([said("user", "x"), said("system", "y")], r"messages\[1\] has role 'system'"),
        ([said("system", "x")], r"messages\[0\], the last, has role 'system', wanted 'user'"),
        ([said("user", "x"), said("assistant", "y")], r"messages\[1\], the last, has role 'assistant'"),
        ([{"role": "user"}], r"messages\[0\] is"),
        ([{"role": "user", "content": "x", "name": "y"}], r"messages\[0\] is"),
        ([{"role": "user", "content": None}], r"messages\[0\] has content None"),
        (["user"], r"messages\[0\] is 'user'"),
    ],
)
def test_refuses_by_index(messages: list, wanted: str) -> None:
    with pytest.raises(RequestError, match=wanted):
        chat.render(messages, ByteTokenizer())
