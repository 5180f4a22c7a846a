"""WordEncoder: a tokenizer for tests of tasks, whose tokens are words."""

from __future__ import annotations

from collections.abc import Sequence

BEGIN, SPACE = 0, 1


class WordEncoder:
    """Ids are given to words as they come. As in LLaMA's tokenizer, a text begins with a begin token and a space of its own.

    begin: how the begin token is spelled.
    """

    def __init__(self, begin: str = "<s>") -> None:
        self.words = [begin, ""]

    def encode(self, text: str, add_bos: bool | None = None, *, allow_special: bool = False) -> list[int]:
        if allow_special and text == self.words[BEGIN]:
            return [BEGIN]
        ids = [SPACE] if add_bos is False else [BEGIN, SPACE]
        for word in text.split(" "):
            if word not in self.words[2:]:
                self.words.append(word)
            ids.append(self.words.index(word, 2))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[token_id] for token_id in ids if token_id > SPACE)
