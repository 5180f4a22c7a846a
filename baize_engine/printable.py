"""Values from untrusted files, made safe for an error message: short, on one line, without control characters."""

from __future__ import annotations

import json
import reprlib
from itertools import islice
from typing import Any

MOST = 160  # characters

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = MOST
_short.maxlist = _short.maxtuple = 16


def shown(text: str) -> str:
    """`text` cut to MOST characters, with unprintable ones escaped; an ordinary name stays as it is."""
    cut = text if len(text) <= MOST else text[: MOST - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def brief(value: Any) -> str:
    """The repr of `value`, cut in length and depth: a small hostile file can hold a value whose full repr is endless."""
    return _short.repr(value)[: 4 * MOST]


def shown_json(value: Any) -> str:
    """The beginning of `value` written as JSON, however deep or long it is."""
    parts = json.JSONEncoder(ensure_ascii=False, default=brief).iterencode(value)
    return shown("".join(islice(parts, MOST + 1)))


def kind(value: Any) -> str:
    """The JSON name of the type of `value`, with its article: "an object", "a list"; null, true and false as themselves."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    words: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    return words.get(type(value), "a number")
