"""Every task of the model card on small data: predictions as a plain loop over transformers' model gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import card_data
import pytest
import tiny
import torch

import baize_engine
from baize_engine import Engine
from baize_engine.evaluation import card, evaluate
from baize_engine.evaluation.options import EvaluationOptions
from baize_engine.evaluation.task import Choice, Encoder, Example, Generation, Judged, Score, Task, Verdict
from baize_engine.text.tokenizer import Tokenizer

BASE = Path(baize_engine.__file__).parent / "demo_pair" / "base"
MOST = 40  # tokens of an answer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Ops this small only wait for each other on several."""
    held = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(held)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, positions for eight examples of GSM, and the demo model's tokenizer."""
    folder = tiny.model(tmp_path_factory.mktemp("model"), vocab_size=1024, max_position_embeddings=4096)
    (folder / "tokenizer.model").write_bytes((BASE / "tokenizer.model").read_bytes())
    return folder


class Short(Task[Any]):
    """Another task with the settings that a plain loop can have: greedy, one answer of a few tokens."""

    def __init__(self, task: Task[Any]) -> None:
        self.task, self.name = task, task.name

    def examples(self, data: Path, seed: int) -> list[Example]:
        return self.task.examples(data, seed)

    def request(self, example: Example, chat: bool, encoder: Encoder) -> Choice | Generation:
        request = self.task.request(example, chat, encoder)
        if isinstance(request, Choice):
            return request
        return replace(request, params=replace(request.params, n=1, temperature=0.0, seed=None, max_new_tokens=MOST))

    def judge(self, example: Example, outputs: Sequence[str]) -> Verdict:
        return self.task.judge(example, outputs)

    def scores(self, judged: Sequence[Judged]) -> list[Score]:
        return self.task.scores(judged)


def plain_answer(model: Any, tokenizer: Tokenizer, request: Choice | Generation) -> list[str]:
    """What transformers' model answers, by itself and one token at a time."""
    if isinstance(request, Choice):
        ids = torch.tensor([tokenizer.encode(request.prompt, True)])
        candidates = [tokenizer.encode(option, False)[0] for option in request.options]
        return [request.options[int(model(ids).logits[0, -1, candidates].argmax())]]
    prompt = tokenizer.encode(request.prompt, True, allow_special=request.parse_special)
    before = tokenizer.decode(prompt)
    ids, cache, made, text = torch.tensor([prompt]), None, [], ""
    while len(made) < MOST:
        out = model(ids, past_key_values=cache, use_cache=True)
        cache, token = out.past_key_values, int(out.logits[0, -1].argmax())
        if token == tokenizer.eos_id or token in request.params.stop_token_ids:
            break
        made.append(token)
        text = tokenizer.decode([*prompt, *made]).removeprefix(before)
        if found := [text.index(stop) for stop in request.params.stop if stop in text]:
            return [text[: min(found)]]
        ids = torch.tensor([[token]])
    return [text]


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")
@pytest.mark.parametrize("format", ["chat", "raw"])
def test_predictions_are_those_of_transformers(model: Path, tmp_path: Path, format: str) -> None:
    import transformers

    options = EvaluationOptions(format=format)
    data = card_data.write_data(tmp_path / "data")
    tasks = [Short(task) for task in card.tasks("card", options)]
    plain = transformers.AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.float32).eval()
    with Engine.from_pretrained(model, device="cpu") as engine, torch.inference_mode():
        tokenizer = engine.tokenizer
        assert tokenizer is not None
        results = evaluate(engine, tasks, data, tmp_path / "out", format=format)
        for task, result in zip(tasks, results, strict=True):
            records = [json.loads(line) for line in (tmp_path / "out" / f"{task.name}.jsonl").read_text().splitlines()]
            examples = task.examples(data, 42)
            assert len(records) == len(examples) == result.examples >= 2
            for record, example in zip(records, examples, strict=True):
                wanted = plain_answer(plain, tokenizer, task.request(example, format == "chat", tokenizer))
                assert (task.name, record["name"], record["outputs"]) == (task.name, example.name, wanted)
    assert any(result.usage.generated_tokens for result in results)
