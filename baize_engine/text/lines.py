"""Encoding by lines, each line once: the prompts of a task repeat the lines of its shots. Knows no model and no task.

The ids are those of the whole text. A sentencepiece model whose only piece with a line break is the byte itself, as LLaMA's,
joins nothing across one. With any other vocabulary, texts are encoded whole.
"""

from __future__ import annotations

import re
from functools import lru_cache

from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer
from baize_engine.text.tokenizer import Tokenizer

MOST_LINES = 1 << 14  # kept; at 50 ids a line they take about 10 MB
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
# where a vocabulary might treat the beginning and end of a line as those of a text
_TRIALS = ("a\nb", " a \n\n  b c \n", "\n\n a", "\u00e9\n\u00e9\n")


class LineEncoder:
    """Encodes texts as `tokenizer.encode(text, add_bos=False, allow_special=allow_special)` does."""

    def __init__(self, tokenizer: Tokenizer, allow_special: bool = False) -> None:
        self._tokenizer, self._allow_special = tokenizer, allow_special
        self._line = lru_cache(MOST_LINES)(self._encode)
        self.by_lines = _breaks_stand_alone(tokenizer)
        self.by_lines = self.by_lines and all(self.encode(text) == self._whole(text) for text in _TRIALS)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. RequestError as Tokenizer.encode raises it."""
        if not self.by_lines:
            return self._whole(text)
        return [token_id for i, line in enumerate(_LINE.findall(text)) for token_id in self._line(line, i > 0)]

    def _whole(self, text: str) -> list[int]:
        return list(self._encode(text, continues=False))

    def _encode(self, text: str, continues: bool) -> tuple[int, ...]:
        return tuple(
            self._tokenizer.encode(text, add_bos=False, continues=continues, allow_special=self._allow_special)
        )


def _breaks_stand_alone(tokenizer: Tokenizer) -> bool:
    """Whether a line break is a byte of its own, no other token has one, and none swallows one beside it."""
    own = tokenizer.encode("\n", add_bos=False, continues=True)
    if not isinstance(tokenizer, SentencePieceTokenizer) or [tokenizer.piece(each) for each in own] != [b"\n"]:
        return False
    pieces = [tokenizer.piece(token_id) for token_id in range(tokenizer.vocab_size)]
    return not any("\n" in text for text in (*pieces, *tokenizer.special_tokens) if isinstance(text, str))
