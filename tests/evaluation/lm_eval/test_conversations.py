"""Conversations as the texts of which prompts are made: encoded, they are the ids that the chat format has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import small_model

from baize_engine.errors import RequestError
from baize_engine.evaluation.lm_eval.conversations import Conversations
from baize_engine.text.chat_formats import format_of
from baize_engine.text.choose import tokenizer_of
from baize_engine.text.tokenizer import Tokenizer

TALK = [
    {"role": "system", "content": "be big"},
    {"role": "user", "content": " who are you?\n"},
    {"role": "assistant", "content": "the cat  "},
    {"role": "user", "content": "and é"},
]


def of_folder(folder: Path, **config: object) -> Tokenizer:
    (folder / "tokenizer.model").write_bytes(small_model())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    found = tokenizer_of(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["open_instruct", "alpaca", "vicuna", "raw"])
def test_a_text_encodes_as_the_format_does(name: str, tmp_path: Path) -> None:
    tokenizer = of_folder(tmp_path)
    conversations = Conversations(tokenizer, name)
    for messages in (TALK, TALK[1:2], TALK[:2]):
        text = conversations.text(messages)
        assert tokenizer.encode(text, allow_special=True) == format_of(tokenizer, name).render(messages, tokenizer)
    assert conversations.template == name


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("open_instruct", "<|user|>\nwho are you?\n<|assistant|>\nthe cat"),
        ("vicuna", " USER: who are you? ASSISTANT: the cat"),
        ("alpaca", "### Instruction:\n who are you?\n\n\n### Response:the cat  "),
        ("raw", " who are you?\n\nthe cat  "),
    ],
)
def test_a_reply_goes_on_from_its_beginning(name: str, wanted: str, tmp_path: Path) -> None:
    text = Conversations(of_folder(tmp_path), name).text(TALK[1:3], reply_begins=False)
    assert text.endswith(wanted)


def test_open_instructs_format_without_a_template(tmp_path: Path) -> None:
    conversations = Conversations(of_folder(tmp_path))
    assert conversations.text(TALK[:2]) == "<|system|>\nbe big\n<|user|>\nwho are you?\n<|assistant|>\n"
    assert conversations.template == "open_instruct"


def test_a_folders_template_goes_first(tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed: chat templates need it")
    begins = "{% if add_generation_prompt %}:{% endif %}"
    template = "{{ bos_token }}{% for m in messages %}[{{ m.content.strip() }}]{% endfor %}" + begins
    tokenizer = of_folder(tmp_path, chat_template=template, bos_token="<s>")
    conversations = Conversations(tokenizer)
    assert conversations.template == template
    assert conversations.text(TALK[1:2]) == "<s>[who are you?]:"
    assert conversations.text(TALK[1:3], reply_begins=False) == "<s>[who are you?][the cat"
    assert Conversations(tokenizer, "raw").template == "raw"
    forgetful = Conversations(of_folder(tmp_path, chat_template="{{ messages[0].content }}"))
    with pytest.raises(RequestError, match="leaves out the last message"):
        forgetful.text(TALK[1:3], reply_begins=False)
