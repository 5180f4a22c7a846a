"""Token ids to text, piece by piece, never half a character. Knows pieces and bytes; no model, no stop rules.

The rules are sentencepiece's own, so that the pieces joined are what it decodes at once: the first piece loses the
dummy space that encoding put there, a run of byte pieces is one run of UTF-8, and each byte of it that cannot be
part of a character becomes one U+FFFD.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

SPACE = "\u2581"  # sentencepiece's spelling of a space inside a piece


class Vocabulary(Protocol):
    """What decoding needs to know of a tokenizer."""

    strips_first_space: bool  # the text's first piece loses one leading space
    strips_all_spaces: bool  # and so does each that follows while the text is still empty

    def piece(self, token_id: int) -> str | bytes:
        """Text with SPACE for a space, one byte for a byte piece, "" for a special token."""
        ...


class IncrementalDecoder:
    """Turns token ids into text as they come. push() returns what has become certain, flush() the rest at the end.

    `context` are ids that came before, such as the prompt's: the text then is their exact continuation, so
    decode(context) + the pieces == decode(context + ids), and a leading space is kept. (Where the context ends within
    a character, that character comes with the piece that completes it.)
    """

    def __init__(self, vocabulary: Vocabulary, context: Iterable[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._pending = b""
        self._at_start = vocabulary.strips_first_space
        for token_id in context:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that `token_id` makes certain; often a word, "" while a character is incomplete."""
        piece = self._vocabulary.piece(token_id)
        if isinstance(piece, bytes):
            self._pending += piece
            return self._release(final=False)
        head = self._release(final=True)  # only neighbouring byte pieces form a character
        if self._at_start and piece.startswith(SPACE):
            piece = piece[1:]
            self._at_start = self._vocabulary.strips_all_spaces
        if piece:
            self._at_start = False
        return head + piece.replace(SPACE, " ")

    def flush(self) -> str:
        """What is still held back: the bytes of a character that never ended, one U+FFFD each."""
        return self._release(final=True)

    def _release(self, final: bool) -> str:
        text = ""
        while self._pending:
            try:
                decoded, used = codecs.utf_8_decode(self._pending, "strict", final)
            except UnicodeDecodeError as bad:
                text += self._pending[: bad.start].decode() + "\ufffd"
                self._pending = self._pending[bad.start + 1 :]
                continue
            text += decoded
            self._pending = self._pending[used:]
            break
        if text:
            self._at_start = False
        return text
