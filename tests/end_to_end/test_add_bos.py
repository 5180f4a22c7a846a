"""The begin token in front of prompts, where a caller, a record or a command says whether it is to be there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from assets import shared
from commands import generate, read, write
from fake_engine import engine_of
from fakes import small_model

from baize_engine import Engine, SamplingParams
from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.errors import RequestError
from baize_engine.text.choose import tokenizer_of
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

FEW = SamplingParams(max_new_tokens=4, ignore_eos=True)
TEXTS = ["Hello", "Hello there ", "the cat\n", "é", "<s>Hello", "Hello</s> world"]


@pytest.mark.parametrize("adds", [True, False])
def test_ids_are_those_of_transformers(tmp_path: Path, adds: bool) -> None:
    """add_bos=False is add_special_tokens=False there; None is what add_bos_token says."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.model").write_bytes(shared("assets/tokenizer_32000.model").read_bytes())
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": adds, "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "</s>", "unk_token": "<unk>"}))
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    engine = engine_of(tokenizer_of(tmp_path), 32000)
    for text in TEXTS:
        bare = theirs.encode(text, add_special_tokens=False)
        assert engine.encode(text, parse_special=True, add_bos=False) == bare
        assert engine.encode(text, parse_special=True, add_bos=True) == [1, *bare]
        assert engine.encode(text, parse_special=True) == [1] * adds + bare


Ask = Callable[..., object]


@pytest.mark.parametrize(
    "ask",
    [
        lambda engine, prompt, **bos: engine.generate(prompt, FEW, **bos),
        lambda engine, prompt, **bos: engine.generate([prompt, [5, 6]], FEW, **bos),
        lambda engine, prompt, **bos: next(engine.completions([prompt], FEW, **bos)),
        lambda engine, prompt, **bos: [*engine.stream_many([prompt], FEW, **bos)],
        lambda engine, prompt, **bos: [*engine.stream(prompt, FEW, **bos)],
        lambda engine, prompt, **bos: engine.encode(prompt, FEW, **bos),
        lambda engine, prompt, **bos: engine.prompt_logprobs(prompt, 1, **bos),
        lambda engine, prompt, **bos: engine.next_token_logprobs(prompt, [5, 9], **bos),
        lambda engine, prompt, **bos: engine.score(prompt, [[7, 8]], **bos),
    ],
)  # fmt: skip
def test_every_request_that_takes_a_prompt_can_say(folder: Path, ask: Ask) -> None:
    with Engine.from_pretrained(folder, device="cpu") as engine:
        assert engine.tokenizer is not None
        bare, whole = (engine.tokenizer.encode("the cat", add_bos=bos) for bos in (False, True))
        assert ask(engine, "the cat", add_bos=False) == ask(engine, bare) == ask(engine, bare, add_bos=True)
        assert ask(engine, "the cat", add_bos=True) == ask(engine, whole) == ask(engine, "the cat")
        assert bare != whole
        with pytest.raises(RequestError, match="add_bos is 0, wanted True, False or None"):
            ask(engine, "the cat", add_bos=0)


def test_a_text_scored_after_a_text_begins_as_it_does(folder: Path) -> None:
    with Engine.from_pretrained(folder, device="cpu") as engine:
        assert engine.tokenizer is not None
        bare = engine.tokenizer.encode("the", add_bos=False)
        more = engine.tokenizer.encode(" cat", add_bos=False, continues=True)
        assert engine.score("the", [" cat"], add_bos=False) == engine.score(bare, [more])
        assert engine.score("the", [" cat"], add_bos=False) != engine.score("the", [" cat"])


def test_a_tokenizer_without_begin_token_says_so() -> None:
    tokenizer = SentencePieceTokenizer(small_model(bos_id=-1), TokenizerFiles())
    engine = engine_of(tokenizer, tokenizer.vocab_size)
    assert engine.encode("the") == engine.encode("the", add_bos=False)
    with pytest.raises(RequestError, match="no BOS token, wanted add_bos=False"):
        engine.encode("the", add_bos=True)


def test_flag_and_records(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = [{"role": "user", "content": "the cat"}]
    lines: list[dict] = [
        {"prompt": "the cat"},
        {"prompt": "the cat", "add_bos": True},
        {"prompt": "the cat", "add_bos": False},
        {"prompt": "the cat", "add_bos": None},
        {"messages": talk},
        {"messages": talk, "add_bos": False},
        {"token_ids": [5], "add_bos": True},
        {"prompt": "a", "add_bos": "no"},
    ]
    with Engine.from_pretrained(folder, device="cpu") as engine:
        whole, bare = (engine.generate("the cat", FEW, add_bos=bos)[0].token_ids for bos in (True, False))
        reply = engine.chat(talk, FEW).token_ids
    assert whole != bare
    path = write(tmp_path / "in.jsonl", lines)
    flags = ("--input", path, "--max_new_tokens", 4, "--ignore_eos", "--quiet", "--output")
    ways = {"": whole, "auto": whole, "yes": whole, "no": bare}
    for way, first in ways.items():
        out, more = tmp_path / f"{way}.jsonl", ("--add_bos", way) if way else ()
        assert generate(folder, *flags, out, *more) == 3
        found = read(out)
        assert [line["completions"][0]["token_ids"] for line in found[:5]] == [first, whole, bare, whole, reply]
        assert all("add_bos applies to prompt only" in line["error"] for line in found[5:7])
        assert 'add_bos is "no", wanted true, false or null' in found[7]["error"]
        for other in ways:  # a run with another --add_bos is another run
            same = {way or "auto"} == {other or "auto"}
            code = generate(folder, *flags, out, *(("--add_bos", other) if other else ()), "--resume")
            assert code == (3 if same else 1)
    capsys.readouterr()
    for way, ids in (("yes", whole), ("no", bare)):
        assert generate(folder, "--prompt", "the cat", "--max_new_tokens", 4, "--ignore_eos", "--add_bos", way) == 0
        with Engine.from_pretrained(folder, device="cpu") as engine:
            (done,) = engine.generate("the cat", FEW, add_bos=way == "yes")
        assert (capsys.readouterr().out, done.token_ids) == (done.text + "\n", ids)
