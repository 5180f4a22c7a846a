"""GSM8K: the card's prompts and sample, and how numbers are read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from assets import shared
from golden import DATA, ByteEncoder, digest, golden_prompts, in_lines

from baize_engine.errors import DataError
from baize_engine.evaluation.gsm import Gsm, GsmExample, number
from baize_engine.evaluation.task import Generation, Judged, Score
from baize_engine.generation.params import SamplingParams

BOTH = pytest.mark.parametrize("chat", [True, False])
WHOLE = {  # of the 200 prompts of the published data
    ("gsm_direct", True): "3c3fc723cfdf0892aedb1e6c60067fad858119c76b7b4a8c714378473c210e3e",
    ("gsm_cot", True): "e6537c5d1163ed15132f1e42065af0974ea91c678107a35635068f504ed1d4da",
    ("gsm_direct", False): "cdc3e1370cd4abe36fef4b3ad0d268776c943b96f0591878f59bb07fc64d48ed",
    ("gsm_cot", False): "a1d08e702e0ce71b07aa5f3d47ac393f96212b910f287f79875606b208950d08",
}


@BOTH
@pytest.mark.parametrize("cot", [True, False])
def test_prompts_of_the_original(cot: bool, chat: bool) -> None:
    task = Gsm(cot)
    requests = [task.request(example, chat, ByteEncoder()) for example in task.examples(DATA, 42)]
    params = SamplingParams(max_new_tokens=512, stop_token_ids=(10,))  # the newline's byte
    assert requests == [Generation(text, params) for text in golden_prompts(task.name, chat)]


@BOTH
@pytest.mark.parametrize("cot", [True, False])
def test_every_prompt_of_the_published_data(cot: bool, chat: bool) -> None:
    task, data = Gsm(cot), shared("assets/eval")
    requests = [task.request(example, chat, ByteEncoder()) for example in task.examples(data, 42)]
    assert digest(request.prompt for request in requests) == WHOLE[task.name, chat]


def test_the_sample_of_the_card(tmp_path: Path) -> None:
    record = json.dumps({"question": "q", "answer": "#### 1"})
    in_lines(tmp_path / "gsm8k_test.jsonl", [record] * 1319)
    names = [example.name for example in Gsm(True).examples(tmp_path, 42)]
    assert names[:6] == ["1309", "228", "51", "563", "501", "457"]
    assert len(set(names)) == 200
    assert [example.name for example in Gsm(True).examples(tmp_path, 7)] != names
    in_lines(tmp_path / "gsm8k_test.jsonl", [record] * 200)
    assert [example.name for example in Gsm(True).examples(tmp_path, 42)] == [str(n) for n in range(200)]


def test_questions_and_their_answers() -> None:
    first, second, third = Gsm(False).examples(DATA, 42)
    assert first == GsmExample("0", "", "  Ann has 3 dogs and 2 birds. How many legs are there? \n", "16")
    assert (second.answer, third.answer) == ("1250000", "-3")


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (" 16 - 3 = 13. So the answer is 13.", "13"),
        ("1,234,567 eggs", "1234567"),
        ("It is 1,2,3", "3"),  # 12,3: a comma after a digit that was used stays
        ("-3", "3"),
        ("-3.50 or +.5", "+.5"),
        ("3 - 2.5", "2.5"),
        ("3 -2.5", "-2.5"),
        ("$1,000.00.", "1000.00"),
        ("1.", "1"),
        (" None ", " None "),
        ("a,b", "a,b"),
        ("", ""),
    ],
)
def test_the_last_number(output: str, wanted: str) -> None:
    assert number(output) == wanted


@pytest.mark.parametrize(
    ("output", "right"),
    [("13", 1.0), (" is -13", 1.0), ("1.3", 1.0), ("13 or 14", 0.0), ("thirteen", 0.0), ("13.0", 0.0)],
)
def test_verdicts(output: str, right: float) -> None:
    verdict = Gsm(True).judge(GsmExample("0", "", "q", "13"), [output])
    assert (verdict.measures, verdict.gold, verdict.prediction) == ({"right": right}, "13", number(output))


def test_the_score() -> None:
    judged = [Judged(str(n), "", {"right": float(n > 0)}) for n in range(4)]
    assert Gsm(True).scores(judged) == [Score("exact match", 75.0, 25.0, 4, 8.5)]
    assert Gsm(False).scores([]) == [Score("exact match", None, None, 0, 4.5)]


GOOD = '{"question": "q", "answer": "a\\n#### 1"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q", "answer": "a"}', "line 2: the answer ends in 'a', wanted \"#### \" and a number"),
        ('{"question": "q", "answer": "#### x"}', "line 2: the answer ends in '#### x', wanted"),
        ('{"question": "q"}', "line 2: answer is absent, wanted a text"),
        ('{"question": 1, "answer": "#### 1"}', "line 2: question is a number, wanted a text"),
        ('{"question": "q", "ans', "line 2: not JSON"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = in_lines(tmp_path / "test.jsonl", [GOOD, line, GOOD])
    with pytest.raises(DataError, match=re.escape(f"{path}, {message}")):
        Gsm(True).examples(tmp_path, 42)


def test_missing_data_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"gsm8k_test\.jsonl or test\.jsonl is absent from .*: download it from https://"
    ):
        Gsm(True).examples(tmp_path, 42)
