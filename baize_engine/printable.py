"""What files of strangers say, made fit for a message: short, in one line, without control characters."""

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
    """A name as it is, if it is of the usual kind."""
    cut = text if len(text) <= MOST else text[: MOST - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def brief(value: Any) -> str:
    """What repr would say, of the first parts of the first levels only: values may refer to themselves a billion times."""
    return _short.repr(value)[: 4 * MOST]


def shown_json(value: Any) -> str:
    """A value that JSON has, as JSON writes it: its beginning only, however deep or long it is."""
    parts = json.JSONEncoder(ensure_ascii=False, default=brief).iterencode(value)
    return shown("".join(islice(parts, MOST + 1)))


def kind(value: Any) -> str:
    """What JSON calls a value of this kind, with its article."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    words: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
    return words.get(type(value), "a number")
