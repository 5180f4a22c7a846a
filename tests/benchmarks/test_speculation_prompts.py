"""The prompts of bench_speculate: that they fit the demo model, and that it really quotes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from quoting import renamed
from speculation_prompts import EACH, KINDS, QUOTING, prompts

from baize_engine import Completion, Engine, SamplingParams

LONGEST = 200


@pytest.fixture(scope="module")
def answers(demo: Path) -> list[Completion]:
    """What the demo model says: greedily where a prompt asks for a quote, else drawn."""
    params = [
        SamplingParams(max_new_tokens=LONGEST, temperature=prompt.temperature, seed=0 if prompt.temperature else None)
        for prompt in prompts()
    ]
    with Engine.from_pretrained(demo, device="cpu") as engine:
        return engine.generate([prompt.text for prompt in prompts()], params)


def test_there_are_as_many_of_every_kind() -> None:
    found = prompts()
    assert Counter(prompt.kind for prompt in found) == dict.fromkeys(KINDS, EACH)
    assert len({prompt.text for prompt in found}) == len(found)
    assert prompts() == found
    assert not {prompt.text for prompt in prompts(1)} & {prompt.text for prompt in found}


def test_what_is_quoted_stands_in_the_prompt() -> None:
    """Line by line, but for the lines that are to be changed."""
    for prompt in prompts():
        if prompt.answer is not None:
            lines = prompt.answer.splitlines()
            kept = sum(line in prompt.text.splitlines() for line in lines)
            assert prompt.kind != "quoting_summary" or kept == len(lines) == 1
            assert prompt.kind != "code_edit" or len(lines) // 4 <= kept < len(lines)


def test_a_rename_changes_whole_names() -> None:
    assert renamed("rate = rates + rate_2 - f(rate)", "rate", "size") == "size = rates + rate_2 - f(size)"


def test_they_are_what_a_chat_asks(demo: Path) -> None:
    with Engine.from_pretrained(demo, device="cpu") as engine:
        for prompt in prompts():
            question = prompt.text.removeprefix("<|user|>\n").removesuffix("\n<|assistant|>\n")
            assert engine.encode(prompt.text) == engine.chat_ids([{"role": "user", "content": question}])


def test_they_fit_with_their_answers(demo: Path) -> None:
    with Engine.from_pretrained(demo, device="cpu") as engine:
        for prompt in prompts():
            assert len(engine.encode(prompt.text)) + LONGEST <= engine.max_model_len
            assert prompt.answer is None or len(engine.encode(prompt.answer, add_bos=False)) < LONGEST


def test_the_demo_model_quotes(answers: list[Completion]) -> None:
    """To the letter: when it was trained, 8 code edits, 7 summaries and 7 JSON echoes of 8 each."""
    right = Counter(p.kind for p, found in zip(prompts(), answers, strict=True) if found.text == p.answer)
    assert all(right[kind] >= 6 for kind in QUOTING), right


def test_its_stories_are_no_quotes(answers: list[Completion]) -> None:
    """No sentence stands in the prompt, and hardly one comes twice."""
    for prompt, found in zip(prompts(), answers, strict=True):
        if prompt.kind == "free_story":
            sentences = found.text.split(". ")
            assert len(found.token_ids) >= 20
            assert len(set(sentences)) >= len(sentences) - 1
            assert not any(sentence in prompt.text for sentence in sentences)
