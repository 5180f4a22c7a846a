"""A folder's own chat template, rendered and encoded as transformers does. Knows no other format.

Special tokens that the template writes become their ids; those that a message spells stay text (`marks`). A template is a
program of whoever published the folder: it runs in a sandbox (`sandbox`), and its text is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from baize_engine.errors import RequestError
from baize_engine.printable import shown
from baize_engine.text import chat
from baize_engine.text.marks import Marks
from baize_engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jinja2 import Template

MAX_SOURCE = 1 << 18  # characters; the longest templates in use have 20 000
MAX_TEXT = 1 << 24  # characters of a rendered conversation
SAFE_JINJA = (3, 1, 6)  # templates leave the sandbox of earlier ones through |attr("format") (CVE-2025-27516)


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template. source: the program. path: its file. tokens: special tokens by role, as {"bos_token": "<s>"}."""

    source: str
    path: Path
    tokens: Mapping[str, str]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template in a tokenizer's files; None if there is none."""
        source, name = tokenizer.files.chat_template()
        if not source:
            return None
        tokens = tokenizer.files.roles()
        for role, token_id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
            own = [text for text in tokenizer.special_tokens if tokenizer.id_of(text) == token_id]
            tokens.setdefault(role, own[0] if own else "")
        return cls(source, tokenizer.files.folder / name, tokens)

    def ids(self, messages: Sequence[chat.Message], tokenizer: Tokenizer) -> list[int]:
        """The ids of a conversation, up to where the reply begins.

        messages: as `chat.render` takes them. RequestError names a message, or the file whose template fails or refuses them.
        """
        chat.check(messages)
        marks = Marks(tokenizer.special_tokens, (message["content"] for message in messages))
        marked = [{**message, "content": marks.put(message["content"])} for message in messages]
        ids: list[int] = []
        for i, (part, own) in enumerate(marks.cut(self.text(marked))):
            ids += tokenizer.encode(part, add_bos=False, continues=i > 0, allow_special=own)
        return ids

    def text(self, messages: Sequence[chat.Message], reply_begins: bool = True) -> str:
        """What the template makes of `messages`. reply_begins: with what stands before a reply behind them.

        RequestError names the file if it fails, refuses them or writes too much.
        """
        parts: list[str] = []
        size = 0
        with self._naming():
            rendering = self._compiled.generate(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=reply_begins,
                **self.tokens,
            )
            for part in rendering:
                size += len(part)
                if size > MAX_TEXT:
                    raise RequestError(f"{self.path}: its chat template writes more than {MAX_TEXT} characters")
                parts.append(part)
        return "".join(parts)

    @cached_property
    def _compiled(self) -> Template:
        if reason := _why_no_jinja():
            raise RequestError(f"{self.path}: its chat template needs {reason}: pip install 'baize-engine[tokenizers]'")
        if len(self.source) > MAX_SOURCE:
            raise RequestError(f"{self.path}: its chat template has more than {MAX_SOURCE} characters")
        from baize_engine.text.sandbox import environment

        return environment().from_string(self.source)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Whatever a template raises, as a RequestError that names its file."""
        try:
            yield
        except RequestError:
            raise
        except Exception as bad:
            line = getattr(bad, "lineno", None)
            where = "" if line is None else f" at line {line}"
            raise RequestError(f"{self.path}: its chat template fails{where}: {shown(str(bad))}") from bad


def _why_no_jinja() -> str | None:
    """What is wanted in place of this machine's jinja2, which torch brings in any version; None if it will do."""
    if find_spec("jinja2") is None:
        return "jinja2"
    found = version("jinja2")
    if tuple(map(int, re.findall(r"\d+", found)[:3])) < SAFE_JINJA:
        wanted = ".".join(map(str, SAFE_JINJA))
        return f"jinja2 {wanted} or newer (found {found}, whose sandbox a template can leave)"
    return None
