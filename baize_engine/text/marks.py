"""Marks: special tokens that a message spells, told from those that a chat template writes. Knows no template.

A message's special tokens are put between two characters that no message has, before the template gets it. Its beginning and
end get a third where they could complete a special token with what stands beside them. The rendered text is cut at the marks.
Without any, which is nearly always, it is one piece, and gets the ids that transformers gives it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import islice


class Marks:
    """The marks for a conversation. special: texts of special tokens. contents: of all its messages."""

    def __init__(self, special: Collection[str], contents: Iterable[str]) -> None:
        used = set("".join(contents))
        private = (character for character in map(chr, range(0xF0000, 0xFFFFE)) if character not in used)
        self._begin, self._end, self._edge = islice(private, 3)
        longest_first = sorted(special, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) is found nowhere
        self._heads = tuple({text[:at] for text in special for at in range(1, len(text))})
        self._tails = tuple({text[at:] for text in special for at in range(1, len(text))})

    def put(self, content: str) -> str:
        """A message with its marks. They stand within the white space around it, which templates strip."""
        inner = content.strip()
        first = self._edge if inner.startswith(self._tails) else ""
        last = self._edge if inner.endswith(self._heads) else ""
        marked = self._spelled.sub(lambda found: f"{self._begin}{found[0]}{self._end}", inner)
        left = len(content) - len(content.lstrip())
        return f"{content[:left]}{first}{marked}{last}{content[left + len(inner) :]}" if inner else content

    def cut(self, text: str) -> Iterator[tuple[str, bool]]:
        """The parts of a rendered text, each with whether special tokens in it are the template's.

        They are not after a first mark of a token, nor before a second, even where the template has cut off the other.
        """
        # text at odd places, marks between
        parts = ["", *re.split(f"([{self._begin}{self._end}{self._edge}])", text), ""]
        for before, part, behind in zip(parts[::2], parts[1::2], parts[2::2], strict=False):
            if part:
                yield part, before != self._begin and behind != self._end
