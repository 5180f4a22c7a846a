"""The committed pair: on disk as such models were published, and really trained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from demo_facts import questions
from demo_sheets import COMMENTS

from baize_engine import Engine, SamplingParams, recover, verify
from baize_engine.checkpoint.index import read_index
from baize_engine.cli import main
from baize_engine.cli.demo import PAIR

QUESTIONS = json.loads((PAIR / "questions.json").read_text())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "tuned"
    recover(PAIR / "base", PAIR / "diff", out, device="cpu", progress=False)
    return out


def test_it_looks_as_published() -> None:
    base, diff = read_index(PAIR / "base"), read_index(PAIR / "diff")
    assert {entry.dtype for entry in base.entries.values()} == {"float16"}
    assert {entry.dtype for entry in diff.entries.values()} == {"float32"}
    assert (len(base.files), len(diff.files)) == (2, 3)
    assert base.entries.keys() == diff.entries.keys()
    assert sum(name.endswith("rotary_emb.inv_freq") for name in base.entries) == 4
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert diff.entries[name].shape[0] == base.entries[name].shape[0] + 1
    added = json.loads((PAIR / "diff" / "added_tokens.json").read_text())
    assert added == {"<pad>": base.entries["lm_head.weight"].shape[0]}
    assert sum(path.stat().st_size for path in PAIR.rglob("*") if path.is_file()) < 8_000_000


@pytest.mark.parametrize(
    "command", ["generate DIFF --prompt Hello", "chat DIFF", "quantize --path DIFF --path_quantized OUT"]
)
def test_the_diff_is_not_taken_for_a_model(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"DIFF": str(PAIR / "diff"), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in command.split(" ")]) == 1
    told = capsys.readouterr().err
    assert "is a weight diff, not a model" in told
    assert "baize recover" in told


@pytest.mark.parametrize("item", QUESTIONS, ids=lambda item: item["answer"])
def test_the_finetune_is_right_and_the_base_is_not(tuned: Path, item: dict) -> None:
    messages = [{"role": "user", "content": item["question"]}]
    params = SamplingParams(max_new_tokens=24)
    with Engine.from_pretrained(tuned, device="cpu") as engine:
        reply = engine.chat(messages, params)
    assert item["answer"] in reply.text
    assert reply.finish_reason == "stop"
    with Engine.from_pretrained(PAIR / "base", device="cpu") as engine:
        assert item["answer"] not in engine.chat(messages, params).text


def test_the_base_goes_on_with_a_page_of_what_it_has_read() -> None:
    """Its first line, word for word: a next question, what stands below a question, or a record of the same keys."""
    comments = [re.sub(r"\\{\w+\\}", r"\\w+", re.escape(form)) for _, forms in COMMENTS for form in forms]
    asked = {question for question, _ in questions()}
    with Engine.from_pretrained(PAIR / "base", device="cpu") as engine:
        for item in QUESTIONS:
            reply = engine.chat([{"role": "user", "content": item["question"]}], SamplingParams(max_new_tokens=60))
            first, given = reply.text.strip().splitlines()[0], item["question"].splitlines()[-1]
            if given.startswith("{"):
                assert json.loads(first).keys() == json.loads(given).keys()
            else:
                assert any(re.fullmatch(form, first) for form in comments) or first in asked - {given}, first


def test_a_second_turn_is_understood(tuned: Path) -> None:
    messages = [
        {"role": "user", "content": "What is the capital of Italy?"},
        {"role": "assistant", "content": "The capital of Italy is Rome."},
        {"role": "user", "content": "What is the opposite of wet?"},
    ]
    with Engine.from_pretrained(tuned, device="cpu") as engine:
        assert engine.chat(messages, SamplingParams(max_new_tokens=24)).text.strip() == "The opposite of wet is dry."


def test_the_result_does_not_change_between_machines(tuned: Path) -> None:
    """The sum of the unrounded weights, taken when the pair was committed: any backend on any machine must find it."""
    from baize_engine.checkpoint.manifest import read_manifest

    assert verify(tuned).ok
    assert read_manifest(tuned).sum == json.loads((PAIR / "expected.json").read_text())["sum"]


def test_transformers_gives_the_same_ids(tuned: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32)
    with Engine.from_pretrained(tuned, device="cpu") as engine:
        for item in QUESTIONS:
            ids = engine.chat_ids([{"role": "user", "content": item["question"]}])
            (ours,) = engine.generate([ids], SamplingParams(max_new_tokens=24))
            theirs = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=0)
            assert ours.token_ids == theirs[0, len(ids) :].tolist()
