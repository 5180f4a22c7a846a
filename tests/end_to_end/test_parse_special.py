"""Special tokens spelled in prompts: their characters, unless parse_special says that they are meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from assets import shared
from commands import generate, read, write
from fake_engine import engine_of
from fakes import EOS, small_model

from baize_engine import Engine, SamplingParams
from baize_engine.errors import RequestError
from baize_engine.text.choose import tokenizer_of
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

FEW = SamplingParams(max_new_tokens=4, ignore_eos=True)


TEXTS = [
    "Hello</s>", "Hello </s>", "Hello</s> world", "Hello </s> world", "<s>Hello", "<s> Hello", "</s>\n", "a</s>\n<|user|>",
    "x<pad>y", "<|im_end|>\nhi", "a ordinary b", "ordinaryx", "</s></s>", "<s></s>", "é</s>é", "Hello\n\n</s>", "</S>", "< /s>",
]  # fmt: skip


def test_ids_are_those_of_transformers(tmp_path: Path) -> None:
    """Text after a special token gets no dummy space, and its spaces stay, as in transformers with legacy=False."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.model").write_bytes(shared("assets/tokenizer_32000.model").read_bytes())
    added = {"<pad>": 32000, "<|im_end|>": 32001, "ordinary": 32002}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({**named, "additional_special_tokens": ["<|im_end|>"]})
    )
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "legacy": false}')
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    tokenizer = tokenizer_of(tmp_path)
    engine = engine_of(tokenizer, 32003)
    for text in TEXTS:
        first, *ids = engine.encode(text, parse_special=True)
        assert first == tokenizer.bos_id  # in front of all prompts, of one that begins with it, too
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert set(engine.encode(text)[1:]).isdisjoint({1, 2, 32000, 32001})
        assert tokenizer.decode(engine.encode(text)) == text


Ask = Callable[[Engine, str, bool], object]


@pytest.mark.parametrize(
    "ask",
    [
        lambda engine, prompt, special: engine.generate(prompt, FEW, parse_special=special),
        lambda engine, prompt, special: engine.generate([prompt, "the"], FEW, parse_special=special)[:1],
        lambda engine, prompt, special: next(engine.completions([prompt], FEW, parse_special=special)),
        lambda engine, prompt, special: [*engine.stream_many([prompt], FEW, parse_special=special)],
        lambda engine, prompt, special: [*engine.stream(prompt, FEW, parse_special=special)],
        lambda engine, prompt, special: engine.encode(prompt, FEW, parse_special=special),
    ],
)  # fmt: skip
def test_every_request_that_takes_a_prompt_can_ask_for_it(ask: Ask) -> None:
    tokenizer = SentencePieceTokenizer(small_model())
    engine = engine_of(tokenizer, tokenizer.vocab_size)
    ids = [*tokenizer.encode("the cat"), EOS, *tokenizer.encode("a", add_bos=False, continues=True)]
    assert ask(engine, "the cat</s>a", True) == ask(engine, ids, False)  # type: ignore[arg-type]
    assert ask(engine, "the cat</s>a", False) == ask(engine, tokenizer.encode("the cat</s>a"), True)  # type: ignore[arg-type]
    assert EOS not in tokenizer.encode("the cat</s>a")
    with pytest.raises(RequestError, match="parse_special is 1, wanted True or False"):
        ask(engine, "a", 1)  # type: ignore[arg-type]


def test_flag_and_records(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[dict] = [
        {"prompt": "the cat</s>a"},
        {"prompt": "the cat</s>a", "parse_special": True},
        {"prompt": "the cat</s>a", "parse_special": False},
        {"messages": [{"role": "user", "content": "the cat</s>a"}]},
        {"messages": [{"role": "user", "content": "a"}], "parse_special": True},
        {"prompt": "a", "parse_special": "yes"},
    ]
    with Engine.from_pretrained(folder, device="cpu") as engine:
        parsed, plain = (
            engine.generate("the cat</s>a", FEW, parse_special=special)[0].token_ids for special in (True, False)
        )
        talk = engine.chat(lines[3]["messages"], FEW).token_ids
    path = write(tmp_path / "in.jsonl", lines)
    flags = ("--input", path, "--max_new_tokens", 4, "--ignore_eos", "--quiet", "--output")
    for more, first in (((), plain), (("--parse_special",), parsed)):
        out = tmp_path / f"{len(more)}.jsonl"
        assert generate(folder, *flags, out, *more) == 3
        found = read(out)
        assert [line["completions"][0]["token_ids"] for line in found[:4]] == [first, parsed, plain, talk]
        assert "parse_special applies to prompt only" in found[4]["error"]
        assert 'parse_special is "yes", wanted true or false' in found[5]["error"]
        assert generate(folder, *flags, out, *more, "--resume") == 3
        other = () if more else ("--parse_special",)
        assert generate(folder, *flags, out, *other, "--resume") == 1  # the answers would be others
    capsys.readouterr()
    shown = []
    for more in ((), ("--parse_special",)):
        assert generate(folder, "--prompt", "the cat</s>a", "--max_new_tokens", 4, "--ignore_eos", *more) == 0
        shown.append(capsys.readouterr().out)
    with Engine.from_pretrained(folder, device="cpu") as engine:
        texts = [
            engine.generate("the cat</s>a", FEW, parse_special=special)[0].text + "\n" for special in (False, True)
        ]
    assert shown == texts
