"""Prompt lookup with trained models, where they are at hand: the answers are the plain ones, and drafts are accepted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from assets import shared

from baize_engine import Completion, Engine, SamplingParams
from baize_engine.cli.demo import PAIR
from baize_engine.generation.loop import Loop
from baize_engine.generation.sequence import Sequence

pytestmark = pytest.mark.usefixtures("one_thread", "free_host")

KINDS = [None, "int8", "int4"]
PARAMS = [
    SamplingParams(max_new_tokens=80), SamplingParams(max_new_tokens=60, temperature=0.7, top_p=0.8, seed=3, n=2),
    SamplingParams(max_new_tokens=60, temperature=0.5, seed=2**62, logprobs=1),
    SamplingParams(max_new_tokens=60, stop=["mom", "the capital"]),
    SamplingParams(max_new_tokens=60, repetition_penalty=1.1, min_new_tokens=30, stop="."),
]  # fmt: skip


@pytest.fixture(scope="module")
def stories() -> Path:
    return shared("assets/stories260K/golden.json").parent


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many draft tokens were accepted of each sequence that has ended since."""
    counts: list[int] = []
    end = Loop._end

    def counted(loop: Loop, sequence: Sequence, reason: str) -> None:
        counts.append(sequence.num_accepted)
        end(loop, sequence, reason)  # type: ignore[arg-type]

    monkeypatch.setattr(Loop, "_end", counted)
    return counts


@contextmanager
def engines(folder: Path, quantize: str | None = None) -> Iterator[tuple[Engine, Engine]]:
    """A plain engine and one with prompt lookup."""
    with (
        Engine.from_pretrained(folder, device="cpu", quantize=quantize) as plain,
        Engine.from_pretrained(folder, device="cpu", quantize=quantize, speculate="ngram") as speculating,
    ):
        yield plain, speculating


def seen(made: list[Completion]) -> list[tuple]:
    return [(one.token_ids, one.text, one.finish_reason, one.stop_reason, one.logprobs, one.seed) for one in made]


def test_the_golden_ids(stories: Path, accepted: list[int]) -> None:
    golden = json.loads((stories / "golden.json").read_text())["cases"]
    prompts = [case["prompt_ids"] for case in golden]
    params = [SamplingParams(max_new_tokens=len(case["greedy_ids"]), ignore_eos=True) for case in golden]
    wanted = [case["greedy_ids"] for case in golden]
    assert sum(map(len, wanted)) == 160
    with Engine.from_pretrained(stories, device="cpu", speculate="ngram") as engine:
        assert [one.token_ids for one in engine.generate(prompts, params)] == wanted
        alone = [engine.generate([ids], one)[0].token_ids for ids, one in zip(prompts, params, strict=True)]
    assert alone == wanted
    assert sum(accepted) > 0


@pytest.mark.parametrize("quantize", KINDS)
def test_stories_that_are_told_again(stories: Path, quantize: str | None, accepted: list[int]) -> None:
    """After a story and its beginning once more: sampled, with stops, with penalties."""
    with engines(stories, quantize) as (plain, speculating):
        story = plain.generate(["Once upon a time"], SamplingParams(max_new_tokens=100))[0].text
        prompt = f"Once upon a time{story} Once upon a time"
        accepted.clear()
        wanted = seen(plain.generate([prompt] * len(PARAMS), PARAMS))
        assert sum(accepted) == 0
        assert seen(speculating.generate([prompt] * len(PARAMS), PARAMS)) == wanted
    assert sum(accepted) > 20


def test_the_answers_of_the_demo(demo: Path, accepted: list[int]) -> None:
    """One after another, and in one conversation that asks everything twice."""
    questions = [item["question"] for item in json.loads((PAIR / "questions.json").read_text())]
    params = SamplingParams(max_new_tokens=24)
    talk: list[dict[str, str]] = []
    with engines(demo) as (plain, speculating):
        for question in questions:
            messages = [{"role": "user", "content": question}]
            reply = plain.chat(messages, params)
            assert seen([speculating.chat(messages, params)]) == seen([reply])
            talk = [*messages, {"role": "assistant", "content": reply.text}, *messages]
            assert seen([speculating.chat(talk, params)]) == seen([plain.chat(talk, params)])
    assert sum(accepted) > 0
