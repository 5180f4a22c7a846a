"""Token ids to text, piece by piece, never half a character. Knows pieces and bytes; no model, no stop rules.

The rules are sentencepiece's, so the joined pieces equal what it decodes at once: the first piece loses the dummy space that
encoding added, a run of byte pieces is decoded as UTF-8, and each byte that cannot be part of a character becomes one U+FFFD.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

SPACE = "\u2581"  # sentencepiece's spelling of a space inside a piece
_BYTE = "baize.byte"  # our error handler, by its name among those of codecs: one U+FFFD for each byte


class Vocabulary(Protocol):
    """What decoding needs from a tokenizer."""

    strips_first_space: bool  # the first piece of a text loses one leading space
    strips_all_spaces: bool  # and so does each later piece while the text is still empty

    def piece(self, token_id: int) -> str | bytes:
        """The text of one id, with SPACE for a space; one byte for a byte piece, "" for a special token."""
        ...


class IncrementalDecoder:
    """Decode token ids as they come: push() returns the text that has become certain, flush() the rest at the end.

    context: earlier ids, such as the prompt's. The text continues theirs exactly, leading space included: decode(context) +
    the pieces == decode(context + ids). If the context ends within a character, the piece that completes it has all of it.
    """

    def __init__(self, vocabulary: Vocabulary, context: Iterable[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._bytes = codecs.getincrementaldecoder("utf-8")(_BYTE)
        self._at_start = vocabulary.strips_first_space
        for token_id in context:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` makes certain: often a word, "" while a character is incomplete."""
        piece = self._vocabulary.piece(token_id)
        if isinstance(piece, bytes):
            return self._utf8(piece)
        head = self._utf8(b"", final=True)  # a character comes from adjacent byte pieces only
        if self._at_start and piece.startswith(SPACE):
            piece = piece[1:]
            self._at_start = self._vocabulary.strips_all_spaces
        if piece:
            self._at_start = False
        return head + piece.replace(SPACE, " ")

    def flush(self) -> str:
        """Return what is still held back: one U+FFFD for each byte of an incomplete character."""
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


codecs.register_error(_BYTE, _one_mark)
