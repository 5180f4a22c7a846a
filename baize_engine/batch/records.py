"""The records in a file of prompts, one JSON object a line. Knows no engine.

    {"prompt": TEXT}  or  {"messages": [{"role": …, "content": …}, …]}  or  {"token_ids": [ID, …]}

A record may also have "id" (a text or an integer) and "meta" (anything), which its answer repeats; "parse_special" (true or
false) and "add_bos" (true, false, or null: as the tokenizer's files say), both only with "prompt"; and sampling parameters,
named as the fields of SamplingParams. Blank lines are skipped. A record that cannot be served does not stop the others.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.file_io import open_regular
from baize_engine.checkpoint.os_errors import reading
from baize_engine.errors import BaizeError, RequestError, ValueRefused
from baize_engine.generation.params import SamplingParams
from baize_engine.printable import shown_json
from baize_engine.text.options import TextOptions

KINDS = ("prompt", "messages", "token_ids")
TEXT_OPTIONS = ("parse_special", "add_bos")  # fields of TextOptions
OTHERS = ("id", "meta", *TEXT_OPTIONS)
PARAMETERS = tuple(field.name for field in fields(SamplingParams))

_JSON = {"None": "null", "True": "true", "False": "false"}
_PYTHON = re.compile(rf"\b({'|'.join(_JSON)})\b")


@dataclass(frozen=True)
class Record:
    """One record. index: its number, from 0; line: its line in the file, from 1; error: why it cannot be used."""

    index: int
    line: int
    content: bytes
    values: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def id(self) -> str | int | None:
        """The "id", if it is a text or an integer."""
        found = self.values.get("id")
        return found if isinstance(found, (str, int)) and not isinstance(found, bool) else None

    def text_options(self, default: TextOptions) -> TextOptions:
        """How the prompt is turned into ids: the record's own options, with `default` for those it leaves out."""
        given = {name: self.values[name] for name in TEXT_OPTIONS if name in self.values}
        options = replace(default, **given)
        for name in given:
            if "prompt" not in self.values:
                raise RequestError(
                    f"{name} applies to prompt only: token_ids are used as they are, and the chat format sets its own tokens"
                )
        return options

    @property
    def extra(self) -> dict[str, Any]:
        """The values under unknown names."""
        return {name: value for name, value in self.values.items() if name not in {*KINDS, *PARAMETERS, *OTHERS}}

    def request(self, default: SamplingParams, extra: str = "error") -> tuple[str, Any, SamplingParams]:
        """Returns (kind, the prompt under that name, sampling parameters: the record's own, else those of `default`).

        extra: "error" refuses unknown names; any other value ignores them. Raises RequestError where the record is wrong.
        """
        if self.error is not None:
            raise RequestError(self.error)
        if self.extra and extra == "error":
            wanted = ", ".join((*KINDS, *OTHERS))
            raise ValueRefused("unknown name", min(self.extra), f", wanted one of {wanted}, or a sampling parameter")
        if self.values.get("id") is not None and self.id is None:
            raise ValueRefused("id is", self.values["id"], ", wanted a text or an integer")
        kinds = [kind for kind in KINDS if kind in self.values]
        if len(kinds) != 1:
            raise RequestError(f"has {' and '.join(kinds) or 'no prompt'}, wanted one of {', '.join(KINDS)}")
        (kind,) = kinds
        value = self.values[kind]
        if kind == "prompt" and not isinstance(value, str):
            raise ValueRefused("prompt is", value, ", wanted a text (token_ids for ids)")
        if kind == "token_ids" and not isinstance(value, list):
            raise ValueRefused("token_ids is", value, ", wanted a list of token ids")
        given = {name: self.values[name] for name in PARAMETERS if name in self.values}
        if isinstance(given.get("logit_bias"), dict):
            given["logit_bias"] = {_id(key): value for key, value in given["logit_bias"].items()}
        return kind, value, replace(default, **given)


def json_message(error: BaizeError) -> str:
    """The error's message with values spelled as in JSON: null and true for None and True."""
    if not isinstance(error, ValueRefused):
        return str(error)
    return f"{error.before} {shown_json(error.value)}{_PYTHON.sub(lambda word: _JSON[word[0]], error.after)}"


@dataclass(frozen=True)
class Survey:
    """What tells one file of prompts from another. records: their number; records_digest: of the bytes of all of them."""

    records: int
    records_digest: str


def survey(path: Path) -> Survey:
    """Surveys the file. Blank lines, and space around a line, do not count. Raises CheckpointError as `records` does."""
    count, whole = 0, hashlib.sha256()
    for _, content in _contents(path):
        whole.update(content + b"\n")
        count += 1
    return Survey(count, whole.hexdigest()[:16])


def records(path: Path, part: range | None = None) -> Iterator[Record]:
    """Yields the records in the file; with `part`, of step 1, only those of these numbers.

    Raises CheckpointError where it is not a regular file.
    """
    start, stop = (0, None) if part is None else (part.start, part.stop)
    for index, (line, content) in islice(enumerate(_contents(path)), start, stop):
        yield _record(index, line, content)


def _contents(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (number of the line, from 1; content) of each record."""
    with reading(path), os.fdopen(open_regular(path), "rb") as file:
        for line, raw in enumerate(file, 1):
            content = raw.strip()
            if content:
                yield line, content


def _record(index: int, line: int, content: bytes) -> Record:
    try:
        return Record(index, line, content, strict_json.parse(content, "the record"))
    except BaizeError as error:
        return Record(index, line, content, error=str(error))


def _id(key: str) -> int | str:
    """Converts a key of logit_bias, always a text in JSON, to a token id. Anything but digits stays as it is."""
    return int(key) if key.isascii() and key.isdecimal() and len(key) < 20 else key
