"""Whether two tokenizers mean the same by an id, whichever libraries serve them."""

from __future__ import annotations

from baize_engine.text.incremental import SPACE
from baize_engine.text.tokenizer import Tokenizer


def first_difference(one: Tokenizer, other: Tokenizer, rows: int) -> int | None:
    """The first id below `rows`, ids that both models have, that stands for two different texts; None if there is none.

    Ids without a text in either, such as special tokens and padding, are passed over.
    """
    for token_id in range(rows):
        texts = {_text(tokenizer.piece(token_id)) for tokenizer in (one, other)}
        if len(texts) > 1 and b"" not in texts:
            return token_id
    return None


def _text(piece: str | bytes) -> bytes:
    return piece if isinstance(piece, bytes) else piece.replace(SPACE, " ").encode()
