"""TydiQA on small data of its schema. golden/tydiqa.json is what the original code made of the same data.

That is eval/tydiqa/run_eval.py of open-instruct (commit 7c5ee77a1), run outside this repository with its sets of languages
sorted, WordEncoder as tokenizer (whose decode spells "<s>", as LLaMA's in transformers does), predict() as model, and
evaluate's script as metric.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import small_model
from word_encoder import WordEncoder

from baize_engine.errors import DataError
from baize_engine.evaluation.task import Judged, Score
from baize_engine.evaluation.tydiqa import TydiQa, TydiQaExample, cut, read_questions
from baize_engine.evaluation.tydiqa_wordings import WORDINGS
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

GOLDEN = Path(__file__).parent / "golden" / "tydiqa.json"
LETTERS = {
    "arabic": "ماء",
    "bengali": "ঢাকা",
    "english": "The  town,",
    "finnish": "Järvi",
    "indonesian": "Pulau",
    "korean": "서울은",
    "russian": "Река",
    "swahili": "Mlima",
    "telugu": "నది",
}


def questions(language: str, count: int, part: str) -> list[dict[str, Any]]:
    """Paragraphs of one question each. Those of Finnish are longer than 512 words; spaces stand where they get lost easily."""
    word = LETTERS[language]
    length = 600 if language == "finnish" else 3
    return [
        {
            "context": f" {part} {word} {number}." + "".join(f" {word[0]}{i}" for i in range(length)) + "\n",
            "qas": [
                {
                    "id": f"{language}-{part}-{number}",
                    "question": f"{word} {part} {number}? ",
                    "answers": [
                        {"text": f"{word} {number}", "answer_start": 1},
                        {"text": f"{number} x", "answer_start": 2},
                    ],
                }
            ],
        }
        for number in range(count)
    ]


def write_data(folder: Path) -> None:
    """Languages in no order, in several articles; English has more questions than are sampled."""
    for part, counts in (("dev", {"telugu": 2, "english": 103, "finnish": 1}), ("train", {"telugu": 30, "arabic": 2})):
        languages = [*counts, *sorted(set(LETTERS) - counts.keys(), reverse=True)]
        data = [{"title": each, "paragraphs": questions(each, counts.get(each, 3), part)} for each in languages]
        text = json.dumps({"version": "tydiqa", "data": data}, ensure_ascii=False)
        (folder / f"tydiqa-goldp-v1.1-{part}.json").write_text(text, encoding="utf-8")


def predict(number: int, question: str) -> str:
    """A model's answer to question `number` of a run: right, nearly, or wrong."""
    right = question.strip().removesuffix("?").replace(" dev", "")
    return [f" {right}", f" the {right}, or another\t", " nothing "][number % 3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tydiqa")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def first_of_each_language(examples: list[TydiQaExample]) -> list[TydiQaExample]:
    return list({each.group: each for each in reversed(examples)}.values())[::-1]


def test_the_samples_of_the_original(data: Path, golden: dict[str, Any]) -> None:
    examples = TydiQa(passage=True).examples(data, seed=42)
    assert [each.question.text for each in examples] == golden["questions"]
    assert examples == TydiQa(passage=False).examples(data, seed=42)
    assert sum(each.group == "english" for each in examples) == 100
    assert len({each.name for each in examples}) == len(examples)
    assert [each.question for each in TydiQa(passage=True).examples(data, seed=43)] != [
        each.question for each in examples
    ]


@pytest.mark.parametrize("passage", [True, False], ids=["gold", "closed"])
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "raw"])
def test_prompts_equal_the_original_ones(data: Path, golden: dict[str, Any], passage: bool, chat: bool) -> None:
    task, encoder = TydiQa(passage), WordEncoder()
    examples = first_of_each_language(task.examples(data, seed=42))
    prompts = [task.request(each, chat, encoder).prompt for each in examples]
    assert [each.group for each in examples] == sorted(WORDINGS)
    assert prompts == golden[f"{'gold' if passage else 'closed'}_{'chat' if chat else 'raw'}"]


def test_how_answers_are_generated(data: Path) -> None:
    encoder = WordEncoder()
    task = TydiQa(passage=True)
    request = task.request(task.examples(data, seed=42)[0], True, encoder)
    assert (request.params.temperature, request.params.max_new_tokens, request.params.n) == (0.0, 50, 1)
    assert request.params.stop_token_ids == (encoder.words.index("\n"),)
    assert request.parse_special


def test_scores_equal_the_original_ones(data: Path, golden: dict[str, Any]) -> None:
    task = TydiQa(passage=True)
    verdicts = []
    for number, example in enumerate(task.examples(data, seed=42)):
        verdict = task.judge(example, [predict(number, example.question.text)])
        assert verdict.prediction == predict(number, example.question.text).strip()
        assert verdict.gold == list(example.question.answers)
        verdicts.append(Judged(example.name, example.group, verdict.measures))
    f1, exact = task.scores(verdicts)
    assert (f1.value, exact.value) == (pytest.approx(golden["f1"]), pytest.approx(golden["exact_match"]))
    assert (f1.card, exact.card, f1.count) == (33.9, None, len(verdicts))
    assert f1.standard_error is None  # as Finnish has one question


def test_languages_count_alike_and_have_an_error() -> None:
    judged = [Judged(f"a/{i}", "a", {"f1": float(i > 0), "exact_match": 0.0}) for i in range(4)]
    judged += [Judged(f"b/{i}", "b", {"f1": 1.0, "exact_match": 1.0}) for i in range(2)]
    task = TydiQa(passage=False)
    assert task.scores(judged)[0] == Score("f1", 87.5, pytest.approx(12.5), 6, 9.0)
    assert task.scores([])[1] == Score("exact_match", None, None, 0, None)


def test_a_passage_is_cut_after_512_tokens() -> None:
    words = [f"w{i}" for i in range(511)]  # a begin token and a space count as well
    assert cut(" ".join(words[:510]), WordEncoder()) == " ".join(words[:510])
    assert cut(" ".join(words), WordEncoder()) == "<s>" + " ".join(words[:510])
    assert cut(" ".join(words), WordEncoder(begin="<begin>")) == " ".join(words[:510])  # no such token: no such mark


def test_a_cut_within_a_character() -> None:
    """With sentencepiece, and letters of three byte tokens: begin, space, 510 bytes; or begin, space, "." and 509."""
    encoder = SentencePieceTokenizer(small_model())
    assert cut("ঢ" * 170, encoder) == "ঢ" * 170
    assert cut("ঢ" * 171, encoder) == "<s>" + "ঢ" * 170
    assert encoder.encode(cut("ঢ" * 171, encoder), False, allow_special=True)[0] == encoder.bos_id
    assert len(encoder.encode(".")) == 3
    assert cut("." + "ঢ" * 171, encoder) == "<s>." + "ঢ" * 169 + "\ufffd\ufffd"


def damaged(**changes: Any) -> dict[str, Any]:
    """A file of one question, with some values of its records replaced; None leaves a value out."""
    answer = {"text": "yes", "answer_start": 0}
    qa = {"id": "english-1-2", "question": "Is it?", "answers": changes.pop("answers", [answer])}
    paragraph = {"context": "It is.", "qas": changes.pop("qas", [qa])}
    for record in (qa, paragraph):
        for name in record.keys() & changes.keys():
            record[name] = changes.pop(name)
    assert not changes
    return {"data": [{"paragraphs": [paragraph]}]}


QA = r"dev\.json: data\[0\]\.paragraphs\[0\]\.qas\[0\]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: not JSON"),
        ([], r"dev\.json is a list, wanted an object"),
        ({}, r"dev\.json: data is null, wanted a list"),
        ({"data": [3]}, r"data\[0\] is a number, wanted an object"),
        ({"data": [{"paragraphs": {}}]}, r"data\[0\]\.paragraphs is an object, wanted a list"),
        (damaged(context=1), r"data\[0\]\.paragraphs\[0\]: context is a number, wanted a text"),
        (damaged(qas=None), r"data\[0\]\.paragraphs\[0\]\.qas is null, wanted a list"),
        (damaged(question=None), QA + ": question is null, wanted a text"),
        (damaged(answers=[]), QA + r"\.answers is empty, wanted at least one"),
        (damaged(answers=[{}]), QA + r"\.answers\[0\]: text is absent, wanted a text"),
        (damaged(id="latin-1"), QA + r"\.id is latin-1, wanted one that begins with arabic, .*telugu"),
    ],
)
def test_damaged_data_say_where(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "dev.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_questions(path)


def test_a_language_without_a_question_to_show(data: Path, tmp_path: Path) -> None:
    for part in ("dev", "train"):
        (tmp_path / f"tydiqa-goldp-v1.1-{part}.json").write_text(json.dumps(damaged()))
    assert [each.name for each in TydiQa(passage=True).examples(tmp_path, 42)] == ["english/0"]
    (tmp_path / "tydiqa-goldp-v1.1-train.json").write_text(json.dumps(damaged(id="finnish-1")))
    with pytest.raises(DataError, match=r"train\.json has no question in english"):
        TydiQa(passage=True).examples(tmp_path, 42)


def test_missing_data_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"tydiqa-goldp-v1\.1-dev\.json is absent .*/tydiqa/v1\.1/tydiqa-goldp-v1\.1-dev"
    ):
        TydiQa(passage=True).examples(tmp_path, 42)
