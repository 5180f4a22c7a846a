"""Answering a file of prompts, over a decoder without weights: order, errors by line, windows, what makes a run its own."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path

import fake_engine
import pytest
from fakes import VOCAB, ByteTokenizer, TableDecoder

from baize_engine.batch.options import BatchOptions
from baize_engine.batch.output import AnswerFile
from baize_engine.batch.records import records
from baize_engine.batch.run import answer, describe_run, heads
from baize_engine.engine import Completion, Engine
from baize_engine.errors import BaizeError
from baize_engine.generation.params import SamplingParams

DEFAULT = SamplingParams(max_new_tokens=4, ignore_eos=True)
LINES: list[object] = [
    {"prompt": "one", "id": "first"},
    {"token_ids": [1, 5, 9], "max_new_tokens": 2, "logprobs": 1},
    {"prompt": 5, "id": 3},
    "no object",
    {"messages": [{"role": "user", "content": "Hi"}], "n": 2},
    {"token_ids": [1, VOCAB]},
    {"prompt": "x" * 100},
    {"prompt": "one", "allowed_token_ids": [VOCAB]},
    {"messages": [{"role": "assistant", "content": "Hi"}]},
    {"prompt": 5.0, "id": "half \ud83d"},
    {"prompt": "one"},
]
BAD = [2, 3, 5, 6, 7, 8, 9]


def make(fail_at: int | None = None) -> Engine:
    """An engine that notes in `calls` how many prompts it gets together."""
    decoder = TableDecoder(VOCAB)
    decoder.fail_at = fail_at
    engine, calls = fake_engine.make(decoder), []
    usual = engine.completions

    def noting(prompts: list, params: object = None, **how: bool) -> Generator[list[Completion], None, None]:
        calls.append(len(prompts))
        return usual(prompts, params, **how)

    engine.calls, engine.completions, engine.decoder = calls, noting, decoder
    return engine


def file_of(folder: Path, lines: list[object]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(engine: Engine, path: Path, out: Path, window: int, resume: bool = False) -> tuple[list[dict], AnswerFile]:
    progress: list[tuple[int, int]] = []
    with AnswerFile(out, heads(path, "run"), resume) as answers:
        before = answers.done
        options = BatchOptions(DEFAULT, window=window)
        answer(engine, path, answers, "run", options, lambda *made: progress.append(made))
    found = [json.loads(text) for text in out.read_text().splitlines()]
    assert sum(prompts for prompts, _ in progress) == len(found) - before
    tokens = [len(each["token_ids"]) for line in found[before:] for each in line.get("completions", ())]
    assert sum(made for _, made in progress) == sum(tokens)
    return found, answers


@pytest.mark.parametrize("window", [1, 3, 4, 64])
def test_each_record_is_answered_in_order_and_bad_ones_by_their_error(tmp_path: Path, window: int) -> None:
    engine = make()
    path = file_of(tmp_path, LINES)
    found, answers = run(engine, path, tmp_path / "out.jsonl", window)
    assert [each["index"] for each in found] == list(range(len(LINES)))
    assert [each.get("id") for each in found] == [
        "first", None, 3, None, None, None, None, None, None, "half \ud83d", None,
    ]  # fmt: skip
    assert [i for i, each in enumerate(found) if "error" in each] == BAD
    assert (answers.done, answers.failed) == (len(LINES), len(BAD))
    for i in BAD:
        assert found[i]["error"].startswith(f"line {i + 1}: ")
        assert "completions" not in found[i]
    assert "the prompt has 101 tokens, wanted 1 to 59" in found[6]["error"]
    assert f"SamplingParams.allowed_token_ids has {VOCAB}" in found[7]["error"]
    good = [record for record in records(path) if record.index not in BAD]
    for record in good:
        kind, value, params = record.request(DEFAULT)
        wanted = engine.generate(engine.chat_ids(value) if kind == "messages" else value, params)
        mine = found[record.index]["completions"]
        assert [(c["index"], c["text"], c["token_ids"]) for c in mine] == [
            (c.index, c.text, c.token_ids) for c in wanted
        ]
        assert [(c["finish_reason"], c["stop_reason"]) for c in mine] == [("length", None)] * params.n
        assert [len(c.get("logprobs", ())) for c in mine] == [0 if params.logprobs is None else 2] * params.n
    assert found[0]["completions"][0]["text"] == found[10]["completions"][0]["text"]
    top = found[1]["completions"][0]["logprobs"][0]
    assert top["top"][0][1] == top["logprob"] < 0


def test_records_go_to_the_engine_in_windows_without_the_bad_ones(tmp_path: Path) -> None:
    engine = make()
    run(engine, file_of(tmp_path, LINES), tmp_path / "out.jsonl", 5)
    assert engine.calls == [3, 1]  # records 0, 1, 4; none of 5 to 9; 10


def test_a_prompt_that_breaks_the_model_is_its_own_error_alone(tmp_path: Path) -> None:
    """Position 8 has logits that are not finite: the second prompt comes there, the others stop before."""
    lines = [{"token_ids": [1, 5]}, {"token_ids": [1, 5, 9, 7, 7, 7]}, {"token_ids": [1, 6]}]
    found, _ = run(make(fail_at=8), file_of(tmp_path, lines), tmp_path / "out.jsonl", 64)
    assert ["error" in each for each in found] == [False, True, False]
    assert "not finite" in found[1]["error"]
    fine, _ = run(make(), file_of(tmp_path, lines), tmp_path / "fine.jsonl", 64)
    engine = make(fail_at=8)  # nothing is made twice
    many = [{"token_ids": [1, 5], "max_new_tokens": 1}, *[{"token_ids": [1, 6, 7]}] * 6, lines[1]]
    found_in_many, _ = run(engine, file_of(tmp_path, many), tmp_path / "many.jsonl", 64)
    assert ["error" in each for each in found_in_many] == [False] * 7 + [True]
    assert engine.calls == [8]
    assert sum(engine.decoder.calls) == (2 + 0) + 6 * (3 + 3) + (6 + 2)  # prompts, and steps after their first tokens
    assert [{**each, "completions": 0} for each in found[::2]] == [{**each, "completions": 0} for each in fine[::2]]
    assert [c["token_ids"] for each in found[::2] for c in each["completions"]] == [
        c["token_ids"] for each in fine[::2] for c in each["completions"]
    ]


@pytest.mark.parametrize("window", [1, 3, 64])
def test_a_stopped_run_is_taken_up_where_it_was(tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a window too: each answer is in the file before the next one is made."""
    lines = [{"token_ids": [1, 5 + i], "temperature": 1.0, "seed": i, "max_new_tokens": 1 + i} for i in range(8)]
    path = file_of(tmp_path, lines)
    whole, _ = run(make(), path, tmp_path / "whole.jsonl", window)
    engine, made = make(), []
    usual = engine.completions

    def stops(prompts, params=None, **how):  # type: ignore[no-untyped-def]
        for found in usual(prompts, params, **how):
            if len(made) == 4:
                raise KeyboardInterrupt
            made.append(found)
            yield found

    monkeypatch.setattr(engine, "completions", stops)
    with pytest.raises(KeyboardInterrupt):
        run(engine, path, tmp_path / "out.jsonl", window)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 4
    again = make()
    found, answers = run(again, path, tmp_path / "out.jsonl", window, resume=True)
    assert found == whole
    assert sum(again.calls) == 4
    assert answers.done == 8


def test_an_error_that_is_not_the_requests_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()

    def broken(prompts, params=None, **how):  # type: ignore[no-untyped-def]
        raise MemoryError

    monkeypatch.setattr(engine, "completions", broken)
    with pytest.raises(MemoryError):
        run(engine, file_of(tmp_path, LINES), tmp_path / "out.jsonl", 5)
    assert not (tmp_path / "out.jsonl").exists()


def test_what_encode_takes_generate_takes_and_what_it_refuses_names_no_index() -> None:
    engine = make()
    assert engine.encode("ab") == ByteTokenizer().encode("ab")
    assert engine.generate(engine.encode([1, 5]), DEFAULT)[0].token_ids == engine.generate([1, 5], DEFAULT)[0].token_ids
    with pytest.raises(BaizeError, match=r"^the prompt has 0 tokens"):
        engine.encode([])
    with pytest.raises(BaizeError, match="banned_token_ids has 999"):
        engine.encode("a", SamplingParams(banned_token_ids=[999]))
    engine.close()
    with pytest.raises(BaizeError, match="closed"):
        engine.encode("a")


def test_a_run_is_its_model_settings_and_parameters(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(b"1234")
    os.utime(weights, ns=(10**18, 10**18))

    def described(settings: dict | None = None, params: SamplingParams = DEFAULT) -> str:
        return describe_run([tmp_path / "m", tmp_path / "absent"], settings or {"quantize": None}, params)

    first = described()
    assert described() == first
    (tmp_path / "m" / "out.jsonl").write_text("the output may lie beside the model")
    assert described() == first
    assert described({"quantize": "int8"}) != first
    assert described(params=SamplingParams(logit_bias={5: 1.0})) != first
    os.utime(weights, ns=(10**18, 10**18 + 1))
    assert described() != first
