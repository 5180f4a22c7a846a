"""Records of a file of prompts: what a line may hold, whose parameters count, and what is wrong with it, by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from baize_engine.batch.records import PARAMETERS, Record, json_message, records, survey
from baize_engine.errors import RequestError
from baize_engine.generation.params import SamplingParams

DEFAULT = SamplingParams(max_new_tokens=9, temperature=0.5)


def read(tmp_path: Path, content: bytes) -> list[Record]:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    return list(records(path))


def one(line: str) -> Record:
    return Record(0, 1, line.encode(), json.loads(line))


def test_a_line_is_a_record_and_a_blank_one_is_none(tmp_path: Path) -> None:
    found = read(
        tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\r\n\n  \n{"token_ids": [1, 2], "id": 7}\n{"prompt": "\xc3\xa9"}'
    )
    assert [(record.index, record.line, record.id) for record in found] == [(0, 1, None), (1, 4, 7), (2, 5, None)]
    assert [record.request(DEFAULT)[:2] for record in found] == [
        ("prompt", "a"), ("token_ids", [1, 2]), ("prompt", "é"),
    ]  # fmt: skip
    assert read(tmp_path, b"\n \n") == []


def test_the_content_is_the_line_without_the_space_around_it(tmp_path: Path) -> None:
    assert [record.content for record in read(tmp_path, b' {"prompt": " a "}\t\r\n')] == [b'{"prompt": " a "}']


def test_parameters_are_the_records_own_or_the_defaults() -> None:
    line = {"prompt": "a", "temperature": 0, "stop": ["x", "y"], "logit_bias": {"5": -2, "17": 1.5}, "seed": 3}
    kind, value, params = one(json.dumps(line)).request(DEFAULT)
    assert (kind, value) == ("prompt", "a")
    assert params == SamplingParams(9, 0.0, stop=["x", "y"], logit_bias={5: -2, 17: 1.5}, seed=3)
    assert one('{"prompt": "a"}').request(DEFAULT)[2] == DEFAULT
    assert {"max_new_tokens", "n", "logprobs", "allowed_token_ids", "min_new_tokens"} <= set(PARAMETERS)


def test_messages_are_passed_on() -> None:
    talk = [{"role": "user", "content": "Hi"}]
    assert one(json.dumps({"messages": talk})).request(DEFAULT)[:2] == ("messages", talk)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (b"{", "not JSON"),
        (b"[1]", "a list, wanted a JSON object"),
        (b'{"prompt": "\xff"}', "not JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "the key 'prompt' appears twice"),
        (b"[" * 100_000, "not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"{}", "has no prompt, wanted one of prompt, messages, token_ids"),
        (b'{"prompt": "a", "token_ids": [1]}', "has prompt and token_ids, wanted one of"),
        (b'{"prompt": [1, 2]}', r"prompt is \[1, 2\], wanted a text \(token_ids for ids\)"),
        (b'{"token_ids": "1 2"}', 'token_ids is "1 2", wanted a list'),
        (b'{"prompt": "a", "temprature": 1}', 'unknown name "temprature", wanted one of prompt, messages'),
        (b'{"prompt": "a", "temperature": -1}', "SamplingParams.temperature is -1"),
        (b'{"prompt": "a", "temperature": NaN}', "not JSON .a number that is not finite: NaN."),
        (b'{"prompt": "a", "stop": null}', "SamplingParams.stop is null, wanted a string or a sequence"),
        (b'{"prompt": "a", "logit_bias": {"x": 1}}', r'logit_bias is {"x": 1}, .*in place of .x.$'),
        (b'{"prompt": "a", "logit_bias": {"-3": 1}}', "in place of '-3'"),
        (b'{"prompt": "a", "id": [1]}', r"id is \[1\], wanted a text or an integer"),
        (b'{"prompt": "a", "id": true}', "id is true, wanted a text or an integer$"),
        (b"1", "the record: a number, wanted a JSON object"),
        (b"-0.5", "the record: a number, wanted a JSON object"),
        (b"null", "the record: null, wanted a JSON object"),
        (b"true", "the record: true, wanted a JSON object"),
        (b'"a"', "the record: a string, wanted a JSON object"),
        (b'{"prompt": null}', r"prompt is null, wanted a text \(token_ids for ids\)"),
        (b'{"token_ids": true}', "token_ids is true, wanted a list"),
        (b'{"prompt": "a", "n": null}', "SamplingParams.n is null, wanted an integer"),
        (b'{"prompt": "a", "ignore_eos": 0}', "SamplingParams.ignore_eos is 0, wanted true or false"),
        (b'{"prompt": "a", "allowed_token_ids": []}', r"is \[\], wanted null or at least one token id"),
        (b'{"prompt": "a", "banned_token_ids": {"a": [null, false]}}', r'is {"a": \[null, false\]}, wanted a seq'),
        (b'{"prompt": "a", "stop": [true]}', r"stop\[0\] is true, wanted a non-empty string"),
        (b'{"prompt": {"a": "\xc3\xa9\\n"}}', r'prompt is {"a": "é\\n"}, wanted a text'),
        (b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", r"prompt is \[{159}…, wanted a text"),
        (b'{"prompt": ["' + b"a" * 100_000 + b'"]}', r'prompt is \["a{157}…, wanted a text'),
    ],
    ids=lambda value: value[:30] if isinstance(value, bytes) else "",
)
def test_what_is_wrong_is_said(tmp_path: Path, line: bytes, wanted: str) -> None:
    bad, good = read(tmp_path, line + b'\n{"prompt": "good"}\n')
    with pytest.raises(RequestError) as refused:
        bad.request(DEFAULT)
    assert re.search(wanted, json_message(refused.value))
    assert good.request(DEFAULT)[1] == "good"


def test_null_is_no_id_and_meta_may_be_anything() -> None:
    record = one('{"prompt": "a", "id": null, "meta": {"a": [1, null]}}')
    assert (record.id, record.request(DEFAULT)[:2]) == (None, ("prompt", "a"))


def test_a_record_that_is_refused_keeps_its_id() -> None:
    assert one('{"id": "x7", "prompt": 5}').id == "x7"


def test_no_depth_of_a_record_is_too_much_for_its_message(tmp_path: Path) -> None:
    """Those that the parser takes; a repr of one as deep was a RecursionError."""
    refused = set()
    for depth in range(850, 1010):
        (record,) = read(tmp_path, b'{"prompt": "a", "temperature": ' + b"[" * depth + b"]" * depth + b"}")
        with pytest.raises(RequestError) as error:
            record.request(DEFAULT)
        refused.add(json_message(error.value).split(" ")[0])
    assert "SamplingParams.temperature" in refused


def test_a_part_has_the_records_of_its_numbers_and_a_survey_tells_files_apart(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n\n  {"prompt": "b"} \nwrong\n{"prompt": "c"}')
    whole = list(records(path))
    assert [(each.index, each.line) for each in whole] == [(0, 1), (1, 3), (2, 4), (3, 5)]
    assert list(records(path, range(1, 3))) == whole[1:3]
    assert list(records(path, range(4, 4))) == []
    found = survey(path)
    assert found.records == 4
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "b"}\nwrong\n{"prompt": "c"}\n')
    assert survey(path) == found
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "b"}\nwrong\n{"prompt": "d"}\n')
    assert (survey(path).records, survey(path) == found) == (4, False)
