"""JSON as it is read here: what Python's reader gives, or a refusal, over values that hypothesis makes up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from made_up import few, json_values

from baize_engine.checkpoint import strict_json
from baize_engine.errors import CheckpointError


@few
@given(json_values)
def test_strict_json_is_json(value: object) -> None:
    text = json.dumps(value).encode()
    try:
        assert strict_json.parse(text, "it") == value
    except CheckpointError:
        assert not isinstance(value, dict) or b"NaN" in text or b"Infinity" in text


@few
@given(json_values)
def test_settings_are_read_as_json_reads_them(tmp_path: Path, value: object) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"it": value}))
    assert repr(strict_json.read_settings(path)) == repr(json.loads(path.read_text()))  # nan is not equal to itself


def test_a_key_that_appears_twice_is_json_and_refused() -> None:
    with pytest.raises(CheckpointError, match=r"^it: the key 'w' appears twice$"):
        strict_json.parse(b'{"a": {"w": 1, "w": 2}}', "it")
    assert strict_json.parse(b'{"w": 1, "w": 2}', "it", strict=False) == {"w": 2}
