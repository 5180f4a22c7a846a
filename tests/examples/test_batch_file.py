"""examples/batch_file.py: the answers are those of Engine.generate, in the order of the prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import read, write
from example_runs import output, run

from baize_engine import Engine, SamplingParams

NAME = "batch_file.py"
RECORDS = [
    {"id": "a", "prompt": "The cat é"},
    {"messages": [{"role": "user", "content": "What is the capital of France?"}], "topic": ["city", None]},
    *({"prompt": f"A dog {i}"} for i in range(6)),
]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_answers_are_those_of_the_engine(demo: Path, tmp_path: Path, temperature: float) -> None:
    prompts = write(tmp_path / "prompts.jsonl", RECORDS)
    prompts.write_text(prompts.read_text().replace("\n", "\n\n", 1))  # a blank line
    flags = ("--model", demo, "--temperature", temperature, "--max_new_tokens", 20)
    (line,) = output(NAME, "prompts.jsonl", "answers.jsonl", *flags, folder=tmp_path)
    with Engine.from_pretrained(demo, device="cpu") as engine:
        asked = [engine.chat_ids(each["messages"]) if "messages" in each else each["prompt"] for each in RECORDS]
        wanted = engine.generate(asked, SamplingParams(max_new_tokens=20, temperature=temperature, seed=0))
    assert read(tmp_path / "answers.jsonl") == [
        {**record, "text": one.text, "finish_reason": one.finish_reason}
        for record, one in zip(RECORDS, wanted, strict=True)
    ]
    assert len({one.text for one in wanted}) > 3
    tokens = sum(len(one.token_ids) for one in wanted)
    assert line == f"answers.jsonl: {len(RECORDS)} answers, {tokens} tokens"


def test_a_prompt_that_is_too_long_is_named_before_anything_is_written(demo: Path, tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", [{"prompt": "short"}, {"prompt": "long " * 2000}])
    done = run(NAME, "prompts.jsonl", "answers.jsonl", "--model", demo, folder=tmp_path)
    assert done.returncode == 1
    assert "prompt 1" in done.stderr
    assert not (tmp_path / "answers.jsonl").exists()
