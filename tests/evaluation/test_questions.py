"""Questions: ids, candidates and what determines an answer; errors that name the task and the example."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from struct import pack

import fake_engine
import pytest
import toy_tasks
from fakes import VOCAB, TableDecoder
from toy_tasks import Item, ToyChoice, ToyText

from baize_engine import Engine, SamplingParams
from baize_engine.errors import RequestError
from baize_engine.evaluation.options import EvaluationOptions
from baize_engine.evaluation.questions import Question, questions
from baize_engine.evaluation.selection import Selection
from baize_engine.evaluation.task import Choice, Encoder, Generation

ITEM = Item("cats/1", "cats", "cats: the", "the")
TOKENIZER = fake_engine.TOKENIZER


@pytest.fixture
def engine() -> Engine:
    return fake_engine.make(TableDecoder(VOCAB))


def asked(engine: Engine, task: toy_tasks.Toy, **options: object) -> Question:
    (question,) = questions(engine, Selection(task, [ITEM]), EvaluationOptions(**options))  # type: ignore[arg-type]
    return question


def test_a_prompt_is_the_tasks_in_either_format_with_the_begin_token_or_without(engine: Engine) -> None:
    for given, text, add_bos in (
        ({}, "<|user|>\ncats: the\n<|assistant|>\nSo", True),
        ({"add_bos": False}, "<|user|>\ncats: the\n<|assistant|>\nSo", False),
        ({"format": "raw"}, "cats: the", True),
    ):
        assert list(asked(engine, ToyText("text"), **given).ids) == TOKENIZER.encode(text, add_bos=add_bos)
        assert asked(engine, ToyChoice("choice"), **given).ids == asked(engine, ToyText("text"), **given).ids


def test_the_digest_of_a_prompt_is_that_of_its_ids_alone(engine: Engine) -> None:
    text, choice = asked(engine, ToyText("text")), asked(engine, ToyChoice("choice"))
    assert text.prompt_digest == choice.prompt_digest == sha256(pack(f"<{len(text.ids)}i", *text.ids)).hexdigest()[:16]
    assert asked(engine, ToyText("text"), add_bos=False).prompt_digest != text.prompt_digest


def test_a_choice_is_made_among_the_first_ids_of_its_options(engine: Engine) -> None:
    question = asked(engine, ToyChoice("choice"))
    assert question.options == ("the", "cat", "dog")
    assert question.candidates == tuple(TOKENIZER.encode(letter, add_bos=False)[0] for letter in "tcd")
    assert asked(engine, ToyText("text")).options == ()


def test_what_determines_an_answer_is_in_the_content(engine: Engine) -> None:
    question = asked(engine, ToyText("text"))
    assert question.content == asked(engine, ToyText("text")).content
    others = [
        replace(question, ids=question.ids[1:]),
        replace(question, params=SamplingParams(seed=1)),
        replace(question, candidates=(5,)),
        replace(question, options=("the",)),
    ]
    assert len({each.content for each in (question, *others)}) == 5
    assert question.content == replace(question, example=replace(ITEM, gold="a")).content  # a verdict is made anew


class Sized(ToyChoice):
    """A question of so many tokens, that may be asked with fewer."""

    def __init__(self, size: int, fewer: int | None = None) -> None:
        super().__init__("sized")
        self.request = lambda *_: Choice("x" * (size - 1), ("a", "b"), None if fewer is None else "x" * (fewer - 1))  # type: ignore[method-assign]


def test_a_choice_may_fill_the_model_and_a_longer_prompt_has_a_shorter_one() -> None:
    engine = fake_engine.make(TableDecoder(VOCAB), max_model_len=20)
    for task, wanted in ((Sized(20, 10), 20), (Sized(21, 20), 20), (Sized(21, 12), 12)):
        question = asked(engine, task)
        assert len(question.ids) == wanted
        assert len(engine.next_token_logprobs([list(question.ids)], question.candidates)[0]) == 2
    for task in (Sized(21), Sized(22, 21)):
        with pytest.raises(RequestError, match=r"sized, example cats/1: the prompt has 21 tokens, the model takes 20"):
            asked(engine, task)


def test_special_tokens_are_parsed_where_the_task_wants_it(folder: Path) -> None:
    class Special(ToyText):
        def request(self, example: Item, chat: bool, encoder: Encoder) -> Generation:
            return Generation("the <s> cat", self.params, parse_special=self.judged)

    with Engine.from_pretrained(folder, device="cpu") as engine:
        assert engine.tokenizer is not None
        bos = engine.tokenizer.bos_id
        assert [list(asked(engine, Special("text", parses)).ids).count(bos) for parses in (True, False)] == [2, 1]


def test_errors_name_the_task_and_the_example(engine: Engine) -> None:
    class NoToken(ToyChoice):
        def request(self, example: Item, chat: bool, encoder: Encoder) -> Choice:
            return Choice("a", ("the", ""))

    with pytest.raises(RequestError, match="choice, example cats/1: the option '' has no token"):
        asked(engine, NoToken("choice"))
    with pytest.raises(RequestError, match=r"text, example cats/1: .*allowed_token_ids"):
        asked(engine, ToyText("text", params=SamplingParams(allowed_token_ids=[VOCAB])))
    short = fake_engine.make(TableDecoder(VOCAB), max_model_len=20)
    with pytest.raises(RequestError, match=r"text, example cats/1: the prompt has 36 tokens, the model takes 19"):
        asked(short, ToyText("text"))
    with pytest.raises(RequestError, match="needs the model's tokenizer, and the model has none"):
        asked(fake_engine.make(TableDecoder(VOCAB), None), ToyText("text"))


def test_ids_are_the_tokenizers_where_lines_come_again(folder: Path) -> None:
    shots = "the cat\n\n the dog\nAnswer: <s>\n"
    prompts = [f"{shots}{last}" for last in ("the", " saw the\n", "")]

    class Asking(ToyText):
        def request(self, example: Item, chat: bool, encoder: Encoder) -> Generation:
            return Generation(example.text, self.params, parse_special=self.judged)

    items = [Item(f"cats/{n}", "cats", prompt, "the") for n, prompt in enumerate(prompts)]
    with Engine.from_pretrained(folder, device="cpu") as engine:
        assert engine.tokenizer is not None
        for parses, add_bos in ((True, True), (False, False)):
            found = questions(engine, Selection(Asking("text", parses), items), EvaluationOptions(add_bos=add_bos))
            wanted = [engine.tokenizer.encode(prompt, add_bos, allow_special=parses) for prompt in prompts]
            assert [list(each.ids) for each in found] == wanted
