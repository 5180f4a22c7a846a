"""Chat formats by name: their texts to the character, their end ids, and which one a folder gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import EOS, ByteTokenizer, small_model
from fast_files import byte_level, llama_3, write

from baize_engine.errors import RequestError
from baize_engine.text import chat, chat_template
from baize_engine.text.chat_formats import CHAT_FORMATS, DEFAULT, RENDERERS, format_of
from baize_engine.text.choose import tokenizer_of

TULU = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)  # of the Tülu 2 models, which open-instruct trained
TALK = [
    {"role": "user", "content": "Name a river. "},
    {"role": "assistant", "content": " The Rhine"},
    {"role": "user", "content": "Another </s>"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions."
)
TEXTS = {  # END: the end id
    "open_instruct": "<|user|>\nName a river.\n<|assistant|>\nThe RhineEND\n<|user|>\nAnother </s>\n<|assistant|>\n",
    "alpaca": (
        f"{ALPACA}\n\n### Instruction:\nName a river. \n\n### Response: The RhineEND"
        "### Instruction:\nAnother </s>\n\n### Response:"
    ),
    "vicuna": f"{VICUNA} USER: Name a river. ASSISTANT: The RhineENDUSER: Another </s> ASSISTANT:",
    "raw": "Name a river. \n The Rhine\nAnother </s>",
}


def ids_of(text: str) -> list[int]:
    tokenizer = ByteTokenizer()
    ids = [tokenizer.bos_id]
    for i, part in enumerate(text.split("END")):
        ids += [EOS] * (i > 0) + tokenizer.encode(part, add_bos=False)
    return ids


@pytest.mark.parametrize("name", TEXTS)
def test_texts_to_the_character(name: str) -> None:
    assert TEXTS.keys() == RENDERERS.keys()
    tokenizer = ByteTokenizer()
    assert RENDERERS[name](TALK, tokenizer) == ids_of(TEXTS[name])
    with_system = {
        "open_instruct": "<|system|>\nBe brief.\n" + TEXTS[name],
        "alpaca": TEXTS[name].replace(ALPACA, "Be brief."),
        "vicuna": TEXTS[name].replace(VICUNA, "Be brief."),
        "raw": "Be brief.\n" + TEXTS[name],
    }
    assert RENDERERS[name]([SYSTEM, *TALK], tokenizer) == ids_of(with_system[name])
    with pytest.raises(RequestError, match=r"messages\[0\] has role 'assistant'"):
        RENDERERS[name](TALK[1:], tokenizer)


@pytest.mark.parametrize("name", TEXTS)
def test_only_begin_and_end_ids_are_special_in_every_vocabulary(name: str, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/tokenizer.model").write_bytes(small_model())
    for folder in (tmp_path / "s", llama_3(tmp_path / "f")):
        tokenizer = tokenizer_of(folder)
        assert tokenizer is not None
        spelled = "".join(tokenizer.special_tokens)
        ids = RENDERERS[name]([*TALK[:2], {"role": "user", "content": spelled}], tokenizer)
        special = [i for i in ids if i in {tokenizer.id_of(token) for token in tokenizer.special_tokens}]
        assert special == ([tokenizer.bos_id] if name == "raw" else [tokenizer.bos_id, tokenizer.eos_id])


def test_the_format_is_found(tmp_path: Path) -> None:
    def found(folder: Path, asked: str = "auto") -> tuple[str, str]:
        made = format_of(tokenizer_of(folder), asked)
        return made.name, made.why

    (tmp_path / "s").mkdir()
    (tmp_path / "s/tokenizer.model").write_bytes(small_model())
    assert found(tmp_path / "s") == ("open_instruct", "the default")
    assert found(write(tmp_path / "f", byte_level())) == ("open_instruct", "the default")
    assert found(llama_3(tmp_path / "l")) == ("template", "the chat template in tokenizer_config.json")
    assert found(llama_3(tmp_path / "l"), "vicuna") == ("vicuna", "asked for")
    tulu = llama_3(tmp_path / "t", chat_template="{{ bos_token }}" + TULU)
    assert found(tulu) == ("open_instruct", "the chat template in tokenizer_config.json writes it")
    assert found(tulu, "template") == ("template", "the chat template in tokenizer_config.json")
    (tulu / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    assert found(tulu) == ("template", "the chat template in chat_template.jinja")
    with pytest.raises(RequestError, match=r"chat_format is 'template', and .*/s has no chat template"):
        found(tmp_path / "s", "template")
    assert format_of(None, "auto") is DEFAULT


def test_a_template_that_cannot_be_run_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "find_spec", lambda name: None)
    tokenizer = tokenizer_of(llama_3(tmp_path))
    assert tokenizer is not None
    made = format_of(tokenizer)
    assert made.name == "template"
    with pytest.raises(RequestError, match="pip install"):
        made.render(TALK, tokenizer)


def test_tulus_template_writes_what_open_instruct_does(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(llama_3(tmp_path, chat_template="{{ bos_token }}" + TULU))
    assert tokenizer is not None
    talk = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}, TALK[2]]
    assert format_of(tokenizer, "template").render(talk, tokenizer) == chat.render(talk, tokenizer)


def test_names_are_those_that_are_documented() -> None:
    assert CHAT_FORMATS == ("auto", "template", "open_instruct", "alpaca", "vicuna", "raw")
