"""Token ids to text, piece by piece, never half a character. Knows pieces and bytes; no model, no stop rules.

The joined pieces equal what the tokenizer's own library decodes at once: the first piece loses the dummy space that encoding
added, and a run of pieces that are bytes is decoded as UTF-8. Where a run is broken, sentencepiece's rule is one U+FFFD for
each byte that cannot be part of a character. The tokenizers library has the same for byte pieces, but replaces the whole
run, characters that had been complete included; a stream cannot take those back, and we keep them.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

SPACE = "\u2581"  # sentencepiece's spelling of a space inside a piece
BYTEWISE = "baize.byte"  # our error handler, by its name among those of codecs: one U+FFFD for each byte
# one U+FFFD for each sequence that is cut short: Unicode's advice, and what Rust and so byte-level vocabularies do
LOSSY = "replace"


class FirstSpaces(Enum):
    """Which spaces at the beginning of a text stand for none."""

    KEPT = auto()
    ONE = auto()  # of the first piece
    ONE_EACH = auto()  # of the first piece, and of each later one while the text is still empty
    ALL = auto()  # of the first piece, wherever in it they are


@dataclass(frozen=True)
class Rules:
    """How pieces become a text. errors: of codecs, for bytes that are no UTF-8."""

    first_spaces: FirstSpaces = FirstSpaces.KEPT
    errors: str = BYTEWISE


class Vocabulary(Protocol):
    """What decoding needs from a tokenizer."""

    rules: Rules

    def piece(self, token_id: int) -> str | bytes:
        """The text of one id, with SPACE for a space, or bytes that may be a part of a character.

        A special token is "", or b"" where it does not end a run of bytes.
        """
        ...


class IncrementalDecoder:
    """Decode token ids as they come: push() returns the text that has become certain, flush() the rest at the end.

    context: earlier ids, such as the prompt's. The text continues theirs exactly, leading space included: decode(context) +
    the pieces == decode(context + ids). If the context ends within a character, the piece that completes it has all of it.
    """

    def __init__(self, vocabulary: Vocabulary, context: Iterable[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._first_spaces = vocabulary.rules.first_spaces
        self._bytes = codecs.getincrementaldecoder("utf-8")(vocabulary.rules.errors)
        self._at_start = self._first_spaces is not FirstSpaces.KEPT
        for token_id in context:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` makes certain: often a word, "" while a character is incomplete."""
        piece = self._vocabulary.piece(token_id)
        if isinstance(piece, bytes):
            return self._utf8(piece)
        head = self._utf8(b"", final=True)  # a character comes from adjacent byte pieces only
        if self._at_start and self._first_spaces is FirstSpaces.ALL:
            piece, self._at_start = piece.replace(SPACE, ""), False
        elif self._at_start and piece.startswith(SPACE):
            piece = piece[1:]
            self._at_start = self._first_spaces is FirstSpaces.ONE_EACH
        if piece:
            self._at_start = False
        return head + piece.replace(SPACE, " ")

    def flush(self) -> str:
        """Return what is still held back: U+FFFD for an incomplete character."""
        return self._utf8(b"", final=True)

    def _utf8(self, content: bytes, final: bool = False) -> str:
        text = self._bytes.decode(content, final)
        if text:
            self._at_start = False
        return text


def _one_mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd", error.start + 1


codecs.register_error(BYTEWISE, _one_mark)
