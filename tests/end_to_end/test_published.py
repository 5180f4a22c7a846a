"""Folders in the form of each family and year: recovered, loaded, asked and chatted with, and compared with transformers.

`published/NAME/*.json` are written by us from what such folders hold, with sizes of tiny models; weights are made here. Each
tuned model is built to say its family's end id as the fifth token after `PROMPT`, where greedy decoding is asked.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from assets import REPO, SHARED
from fakes import llama_sized_model

from baize_engine import Engine, SamplingParams, verify
from baize_engine.checkpoint.strict_json import read_settings
from baize_engine.cli import main
from baize_engine.errors import RequestError
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

transformers = pytest.importorskip("transformers")

HERE = REPO / "tests" / "published"
PROMPT = "the cat sat on"
GROWING = ("model.embed_tokens.weight", "lm_head.weight")
SAID = 4  # tokens before the end id


@dataclass(frozen=True)
class Family:
    """`ends`: its end ids, the one that the test model says first. `theirs`: the end ids that transformers has, if it reads it.

    `bos`: what prompts begin with; `their_bos`: in transformers 5. `chat_bos`: begin ids in a conversation, none where the
    folder's chat template writes none.
    """

    base: str
    ends: tuple[int, ...] = (2,)
    theirs: tuple[int, ...] = (2,)
    bos: int | None = 1
    their_bos: int | None = 1
    chat_bos: int = 1


FAMILIES = {
    "alpaca": Family("llama_2023_03", theirs=(1,), their_bos=None),  # theirs was 2 in transformers 4
    "vicuna_v0": Family("llama_2023_04", theirs=(1,)),
    "vicuna_v1_1": Family("llama_2023_03"),
    "wizardlm": Family("llama_2023_04"),
    "open_instruct_baize": Family("llama_2023_03"),
    "tulu": Family("llama_2023_04"),
    "chatml": Family("llama_2", ends=(32000, 2), chat_bos=0),
    "no_begin_token": Family("llama_2", ends=(32000, 2), theirs=(2, 32000), bos=None, their_bos=None),
    "transformers_5": Family("llama_2", their_bos=None),  # 1 by tokenizer.json, which it wrote beside the file
}


@pytest.fixture(scope="session")
def sentencepiece_model() -> bytes:
    real = SHARED / "assets" / "tokenizer_32000.model"
    return real.read_bytes() if real.exists() else llama_sized_model()


def config_of(name: str) -> dict[str, Any]:
    return {"num_key_value_heads": 4, **json.loads((HERE / name / "config.json").read_text())}


def write(folder: Path, name: str, tensors: dict, model: bytes | None, form: str, shards: int = 1) -> Path:
    """A folder as published: its JSON files byte for byte."""
    tiny.write_model(folder, {}, tensors, form, shards)
    for path in (HERE / name).iterdir():
        shutil.copy(path, folder)
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model)
    return folder


def greedy(tensors: dict, config: dict, ids: list[int], count: int) -> list[int]:
    """What transformers says, however often it says an end id."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "rms_norm_eps")  # fmt: skip
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{key: config[key] for key in sizes})).eval()
    model.load_state_dict({name: value.float() for name, value in tensors.items()})
    with torch.inference_mode():
        return said(model, ids, count, None)


def said(model: Any, ids: list[int], count: int, ends: Any) -> list[int]:
    out = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=ends, pad_token_id=0)
    return out[0, len(ids) :].tolist()


@dataclass
class Published:
    name: str
    family: Family
    base: Path
    diff: Path
    tuned: Path
    saying: list[int]


@pytest.fixture(scope="module", params=FAMILIES)
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sentencepiece_model: bytes
) -> Published:
    """Base, diff, and the model recovered by the command, of a family."""
    name, family = request.param, FAMILIES[request.param]
    root, config, base_config = tmp_path_factory.mktemp(name), config_of(name), config_of(family.base)
    base = {**tiny.state(base_config, 0, torch.float16), **{k: v.half() for k, v in tiny.inv_freq(base_config).items()}}
    base_folder = write(root / "base", family.base, base, sentencepiece_model, "bin", shards=3)
    first = [] if family.bos is None else [family.bos]
    ids = first + SentencePieceTokenizer(sentencepiece_model).encode(PROMPT, add_bos=False)
    for seed in range(1, 20):  # the first whose answer repeats nothing
        tuned = tiny.state(config, seed, torch.float16, scale=0.2)
        free = greedy(tuned, config, ids, SAID + 1)
        if len({*free, *family.ends}) == SAID + 1 + len(family.ends):
            break
    rows = [free[SAID], family.ends[0]]
    tuned["lm_head.weight"][rows] = tuned["lm_head.weight"][rows[::-1]]
    grown = base
    if config["vocab_size"] > base_config["vocab_size"]:
        new = config["vocab_size"] - base_config["vocab_size"]
        means = {key: value[-1:] for key, value in tiny.add_pad_row(base).items() if key in GROWING}
        grown = base | {key: torch.cat([base[key].float(), mean.expand(new, -1)]) for key, mean in means.items()}
    diff = {key: value.float() - grown[key].float() for key, value in tuned.items()} | tiny.inv_freq(config, 0.0)
    diff_folder = write(root / "diff", name, diff, sentencepiece_model, "bin", shards=2)
    paths = ("--path_raw", base_folder, "--path_diff", diff_folder, "--path_tuned", root / "tuned")
    assert main(["recover", *map(str, paths)]) == 0
    return Published(name, family, base_folder, diff_folder, root / "tuned", [*free[:SAID], family.ends[0]])


def test_it_is_recovered_with_all_that_its_files_say(published: Published) -> None:
    assert verify(published.tuned).ok
    for path in (HERE / published.name).iterdir():
        before, after = read_settings(path), read_settings(published.tuned / path.name)
        if path.name == "config.json":
            before.pop("_name_or_path", None)
            kind = "dtype" if "dtype" in before else "torch_dtype"
            assert list(after) == list(before)
            before[kind] = "float16"
        assert after == before, path.name


def test_it_is_asked_and_ends_where_it_was_trained_to(published: Published, capsys: pytest.CaptureFixture[str]) -> None:
    family = published.family
    params = SamplingParams(max_new_tokens=12, temperature=0)
    with Engine.from_pretrained(published.tuned, device="cpu", max_model_len=64) as engine:
        assert engine.tokenizer is not None
        ids = engine.encode(PROMPT)
        bare = engine.tokenizer.encode(PROMPT, add_bos=False)
        assert ids == ([] if family.bos is None else [family.bos]) + bare
        assert sorted(engine.eos_token_ids) == sorted(family.ends)
        (done,) = engine.generate(PROMPT, params)
        assert (done.finish_reason, done.stop_reason) == ("stop", family.ends[0])
        assert engine.encode(done.text) is not None
        assert "".join(engine.stream(PROMPT, params)) == done.text
        reply = engine.chat([{"role": "user", "content": "Hi"}], params)
        assert reply.finish_reason in ("stop", "length")
        assert engine.chat_ids([{"role": "user", "content": "Hi"}]).count(1) == family.chat_bos
        rows = engine.vocab_size
        assert isinstance(engine.tokenizer.decode(range(rows)), str)  # every id that it can say
        with pytest.raises(RequestError, match=f"token id {rows} stands for no text"):
            engine.tokenizer.decode([rows])
    with Engine.from_diff(published.base, published.diff, device="cpu", max_model_len=64) as engine:
        assert sorted(engine.eos_token_ids) == sorted(family.ends)
        assert engine.generate(PROMPT, params)[0].token_ids == done.token_ids
    capsys.readouterr()
    assert main(["generate", str(published.tuned), "--device", "cpu", "--prompt", PROMPT, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == done.text + "\n"


def test_it_is_chatted_with_and_info_says_which_ids(
    published: Published, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = published.family
    assert main(["info", str(published.tuned)]) == 0
    shown = capsys.readouterr().out
    assert (f"prompts begin with id {family.bos}:" if family.bos is not None else "prompts get no BOS id") in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("  texts end with ")]
    assert all(f"id {end}: " in line for end in family.ends)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\nWho are you?\n")))
    assert main(["chat", str(published.tuned), "--device", "cpu", "--max_new_tokens", "4"]) == 0


def test_transformers_says_the_same(published: Published) -> None:
    family = published.family
    theirs = transformers.LlamaTokenizer.from_pretrained(published.tuned)
    model = transformers.AutoModelForCausalLM.from_pretrained(published.tuned, dtype=torch.float32).eval()
    own = model.generation_config.eos_token_id
    assert tuple(own if isinstance(own, list) else [own]) == family.theirs
    with Engine.from_pretrained(published.tuned, device="cpu", max_model_len=64) as engine:
        assert engine.tokenizer is not None
        their_ids = theirs.encode(PROMPT)
        bare = engine.tokenizer.encode(PROMPT, add_bos=False)
        assert their_ids == ([] if family.their_bos is None else [family.their_bos]) + bare
        ids = engine.encode(PROMPT)
        (done,) = engine.generate(PROMPT, SamplingParams(max_new_tokens=12, temperature=0))
        with torch.inference_mode():
            answer = said(model, ids, 12, list(engine.eos_token_ids))
            assert answer == published.saying
            assert done.token_ids == answer
            if set(family.theirs) == set(family.ends):
                assert (
                    model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
                    == answer
                )
        rows = range(len(theirs), engine.vocab_size)
        assert theirs.decode(list(rows)) == engine.tokenizer.decode(rows) == ""
        text = engine.tokenizer.encode("The quick brown fox.\nnaïve 日本語 😀", add_bos=False)
        assert theirs.decode(text) == engine.tokenizer.decode(text)


@pytest.mark.parametrize("name", ["llama_2023_03", "llama_2023_04", "llama_2"])
def test_a_base_is_loaded_and_asked(name: str, tmp_path: Path, sentencepiece_model: bytes) -> None:
    config = config_of(name)
    write(tmp_path, name, tiny.state(config, 1, torch.float16), sentencepiece_model, "bin", shards=2)
    with Engine.from_pretrained(tmp_path, device="cpu", max_model_len=64) as engine:
        assert engine.eos_token_ids == (2,)
        assert engine.encode(PROMPT)[0] == 1
        assert len(engine.generate(PROMPT, SamplingParams(max_new_tokens=4, ignore_eos=True))[0].token_ids) == 4


def test_a_llama_3_without_its_tokenizer_speaks_ids_and_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of("llama_3") | {"num_key_value_heads": 2}
    folder = write(tmp_path, "llama_3", tiny.state(config, 1, torch.bfloat16), None, "safetensors")
    ends = (128001, 128008, 128009)
    with Engine.from_pretrained(folder, device="cpu", max_model_len=64) as engine:
        assert engine.eos_token_ids == ends
        (done,) = engine.generate([[128000, 9906]], SamplingParams(max_new_tokens=4, temperature=0, ignore_eos=True))
        with pytest.raises(
            RequestError, match=r"tokenizer\.model: absent, wanted a sentencepiece model, or tokenizer\.json"
        ):
            engine.generate(PROMPT)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert tuple(model.generation_config.eos_token_id) == ends
    with torch.inference_mode():
        assert said(model, [128000, 9906], 4, None) == done.token_ids
    assert main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "no text: " in shown
    assert "texts end with id 128001: eos_token_id in generation_config.json; id 128008" in shown


def test_an_end_id_follows_prompts_where_the_files_say_so_and_no_text_that_is_scored(
    tmp_path: Path, sentencepiece_model: bytes
) -> None:
    name = "llama_2023_04"
    write(tmp_path, name, tiny.state(config_of(name), 1, torch.float16, scale=0.2), sentencepiece_model, "safetensors")
    path = tmp_path / "tokenizer_config.json"
    with Engine.from_pretrained(tmp_path, device="cpu", max_model_len=64) as engine:
        plain = engine.encode(PROMPT)
        scores = engine.score(PROMPT, [" mat", " house"])
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_eos_token": True}))
    with Engine.from_pretrained(tmp_path, device="cpu", max_model_len=64) as engine:
        assert engine.encode(PROMPT) == [*plain, 2]
        assert engine.score(PROMPT, [" mat", " house"]) == scores
        assert engine.chat_ids([{"role": "user", "content": "Hi"}])[-1] != 2
        ids = engine.encode(PROMPT)
        params = SamplingParams(max_new_tokens=3, temperature=0, ignore_eos=True)
        texts, lists = engine.generate([PROMPT, ids], params)
        assert texts.token_ids == lists.token_ids
