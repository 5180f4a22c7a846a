"""TydiQA-GoldP: short answers in nine languages, from the passage that has the answer or from memory ("closed book").

Prompts, samples and cuts are those of open-instruct's eval/tydiqa/run_eval.py (commit 7c5ee77a1), but for one thing: there,
languages came in the order of a Python set, which each process draws anew, and the samples with it. Here they are sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from baize_engine.errors import DataError
from baize_engine.evaluation import squad
from baize_engine.evaluation.data import json_value, locate, objects, read_text, texts
from baize_engine.evaluation.task import (
    Encoder,
    Example,
    Generation,
    Judged,
    Score,
    Task,
    Verdict,
    chat_prompt,
    drawn,
    mean_score,
    newline_id,
)
from baize_engine.evaluation.tydiqa_wordings import WORDINGS
from baize_engine.generation.params import SamplingParams
from baize_engine.printable import kind, shown

SOURCE = "https://storage.googleapis.com/tydiqa/v1.1/"
PER_LANGUAGE = 100
MAX_PASSAGE = 512  # tokens, the BOS token among them
BEGIN = "<s>"  # LLaMA's BOS token


@dataclass(frozen=True)
class TydiQaQuestion:
    """A question, the passage that has the answer, and the right answers, at least one."""

    passage: str
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class TydiQaExample(Example):
    """A question of the development set, and the one of the training set that shows how to answer. group: the language."""

    question: TydiQaQuestion
    shot: TydiQaQuestion


class TydiQa(Task[TydiQaExample]):
    """passage: whether the prompt has the gold passage."""

    def __init__(self, passage: bool) -> None:
        self.passage = passage
        self.name = "tydiqa_gold" if passage else "tydiqa_closed"
        self.card = 33.9 if passage else 9.0

    def examples(self, data: Path, seed: int) -> list[TydiQaExample]:
        random = Random(seed)  # draws the samples of all languages first, then the shots
        chosen: dict[str, list[tuple[int, TydiQaQuestion]]] = {}
        for language, found in sorted(read_questions(_locate(data, "dev")).items()):
            numbered = list(enumerate(found))
            chosen[language] = drawn(numbered, PER_LANGUAGE, random)
        path = _locate(data, "train")
        train = read_questions(path)
        examples = []
        for language, questions in chosen.items():
            if language not in train:
                raise DataError(f"{path} has no question in {language}, wanted one to show")
            (shot,) = random.sample(train[language], 1)
            examples += [TydiQaExample(f"{language}/{number}", language, each, shot) for number, each in questions]
        return examples

    def request(self, example: TydiQaExample, chat: bool, encoder: Encoder) -> Generation:
        params = SamplingParams(max_new_tokens=50, stop_token_ids=(newline_id(encoder),))
        return Generation(self.prompt(example, chat, encoder), params, parse_special=self.passage)

    def prompt(self, example: TydiQaExample, chat: bool, encoder: Encoder) -> str:
        """The text that the answer continues. Where a passage was cut it begins with BEGIN, to be read as that token."""
        wording = WORDINGS[example.group]
        instruction = wording.gold if self.passage else wording.closed
        shown_question = self._asked(example.shot, example.group, encoder)
        shot = f"{shown_question}\n{wording.answer} {example.shot.answers[0]}"
        text = f"{instruction}\n\n{shot}\n\n{self._asked(example.question, example.group, encoder)}\n"
        return chat_prompt(text.strip(), wording.answer) if chat else text + wording.answer

    def _asked(self, question: TydiQaQuestion, language: str, encoder: Encoder) -> str:
        wording = WORDINGS[language]
        asked = f"{wording.question} {question.text}"
        return f"{wording.passage} {cut(question.passage, encoder)}\n{asked}" if self.passage else asked

    def judge(self, example: TydiQaExample, outputs: Sequence[str]) -> Verdict:
        prediction, answers = outputs[0].strip(), example.question.answers
        return Verdict(prediction, list(answers), squad.measures(prediction, answers))

    def scores(self, judged: Sequence[Judged]) -> list[Score]:
        return [
            mean_score("f1", judged, "f1", self.card, by_group=True),
            mean_score("exact_match", judged, "exact_match", None, by_group=True),
        ]


def cut(passage: str, encoder: Encoder) -> str:
    """A passage of more than MAX_PASSAGE tokens: the text of the first ones. A shorter one: itself.

    The original decoded the BOS token with the rest, so that a cut passage began with "<s>", and so does ours if that is
    how the encoder spells its BOS token. transformers then read it as that token again, in the middle of the prompt.
    (Version 4.31.0 also dropped the space in front of it and put one behind; ours stays in front.)
    """
    ids = encoder.encode(passage)
    if len(ids) <= MAX_PASSAGE:
        return passage
    begins = ids[:1] == encoder.encode(BEGIN, add_bos=False, allow_special=True)
    return (BEGIN if begins else "") + encoder.decode(ids[:MAX_PASSAGE])


def read_questions(path: Path) -> dict[str, list[TydiQaQuestion]]:
    """{language: its questions in the file's order}. DataError says where in the file something is wrong."""
    root = json_value(read_text(path), str(path))
    if not isinstance(root, dict):
        raise DataError(f"{path} is {kind(root)}, wanted an object")
    found: dict[str, list[TydiQaQuestion]] = {}
    for at_article, article in objects(root.get("data"), f"{path}: data"):
        for at_paragraph, paragraph in objects(article.get("paragraphs"), f"{at_article}.paragraphs"):
            (passage,) = texts(paragraph, ("context",), at_paragraph)
            for at, record in objects(paragraph.get("qas"), f"{at_paragraph}.qas"):
                name, text = texts(record, ("id", "question"), at)
                answers = []
                for where, answer in objects(record.get("answers"), f"{at}.answers"):
                    answers += texts(answer, ("text",), where)
                if not answers:
                    raise DataError(f"{at}.answers is empty, wanted at least one")
                language = name.split("-")[0]
                if language not in WORDINGS:
                    raise DataError(f"{at}.id is {shown(name)}, wanted one that begins with {', '.join(WORDINGS)}")
                found.setdefault(language, []).append(TydiQaQuestion(passage, text, tuple(answers)))
    return found


def _locate(data: Path, part: str) -> Path:
    name = f"tydiqa-goldp-v1.1-{part}.json"
    return locate(data, (name, f"tydiqa/{name}"), f"{SOURCE}{name} (dev and train are both needed)")
