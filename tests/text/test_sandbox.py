"""The environment of chat templates: its functions, as transformers has them. What it keeps out: test_chat_template.py."""

from __future__ import annotations

from datetime import datetime

import pytest
from jinja2 import TemplateError

from baize_engine.text.sandbox import environment


def rendered(template: str, **given: object) -> str:
    return environment().from_string(template).render(**given)


def test_blocks_leave_no_line_breaks_and_no_indents() -> None:
    assert rendered("{% if true %}\n  a\n    {% endif %}\nb\n") == "  a\nb"


def test_json_has_no_escapes_for_html() -> None:
    value = {"b": "<é>'", "a": [1, None, True]}
    assert rendered("{{ v | tojson }}", v=value) == '{"b": "<é>\'", "a": [1, null, true]}'
    assert rendered("{{ v | tojson(sort_keys=true, indent=1, ensure_ascii=true) }}", v={"b": "é", "a": 1}) == (
        '{\n "a": 1,\n "b": "\\u00e9"\n}'
    )
    assert rendered("{{ v | tojson(separators=(',', ':')) }}", v={"b": 1, "a": 2}) == '{"b":1,"a":2}'


def test_time_loops_and_refusals() -> None:
    before = datetime.now().strftime("%Y-%m-%d")
    assert before <= rendered("{{ strftime_now('%Y-%m-%d') }}") <= datetime.now().strftime("%Y-%m-%d")
    assert rendered("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% if i == 3 %}{% break %}"
                    "{% endif %}{% endfor %}") == "023"  # fmt: skip
    with pytest.raises(TemplateError, match="no system message"):
        rendered("{{ raise_exception('no system message') }}")


def test_namespaces_and_dicts_hold_what_they_are_given() -> None:
    assert rendered("{% set n = namespace(self=1, a=2) %}{% set n.a = n.a + 1 %}{{ n.a }}{{ n.self }}") == "31"
    assert rendered("{% set n = namespace({'a': 2}) %}{{ n.a }}{{ dict(x=1).x }}{{ dict({'y': 2}).y }}") == "212"


def test_what_is_trained_on_is_what_it_contains() -> None:
    assert rendered("a{% generation %}b{% set x = 1 %}{{ x }}{% endgeneration %}c{{ x }}") == "ab1c"
