"""Marks: special tokens that a message spells, told from those that a chat template writes. Knows no template.

A message's special tokens are put between two characters that no message has, before the template gets it. Its beginning and
end are marked too where they could complete a special token with what stands beside them. The rendered text is cut at the
marks. Without any, which is nearly always, it is one piece, and gets the ids that transformers gives it.
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
        self._begin, self._end = islice(private, 2)
        longest_first = sorted(special, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) is found nowhere
        self._heads = tuple({text[:at] for text in special for at in range(1, len(text))})
        self._tails = tuple({text[at:] for text in special for at in range(1, len(text))})

    def put(self, content: str) -> str:
        """A message with its marks. They stand within the white space around it, which templates strip."""
        marked = self._spelled.sub(lambda found: f"{self._begin}{found[0]}{self._end}", content)
        inner = marked.strip()
        if not inner:
            return marked
        begin = self._begin if inner.startswith(self._tails) else ""
        end = self._end if inner.endswith(self._heads) else ""
        left = len(marked) - len(marked.lstrip())
        return f"{marked[:left]}{begin}{inner}{end}{marked[left + len(inner) :]}"

    def cut(self, text: str) -> Iterator[tuple[str, bool]]:
        """The parts of a rendered text, each with whether special tokens in it are the template's.

        A mark whose partner the template has cut off separates all the same.
        """
        either = f"[{self._begin}{self._end}]"
        for i, part in enumerate(re.split(f"{self._begin}([^{self._begin}{self._end}]*){self._end}", text)):
            for piece in re.split(either, part):
                if piece:
                    yield piece, i % 2 == 0
