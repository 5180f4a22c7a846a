"""tokenizer.model, sentencepiece's own file, beside tokenizer.json, which newer versions of transformers write in its place.

Both hold the same vocabulary for a LLaMA, so that a finetune that comes with tokenizer.json alone can take its base's
tokenizer.model along. Nothing is run: of the one the pieces are read, of the other two of its keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from baize_engine.checkpoint.file_io import read_whole
from baize_engine.errors import CheckpointError

MODEL, FAST = "tokenizer.model", "tokenizer.json"
MAX_BYTES = 32 << 20  # of either; LLaMA's are 0.5 and 1.8 to 3.5 MB, Llama-3's tokenizer.json 9 to 17
MAX_PIECES = 1 << 20
_PIECES = 1  # the field of ModelProto, and of each piece the field of its text
_PIECE_TEXT = 1
_FIXED = {1: 8, 5: 4}  # bytes of protobuf's wire types of fixed length


def pieces(content: bytes, what: str) -> list[str]:
    """The pieces of a sentencepiece model by id. CheckpointError, naming `what`, where it is not one, or empty."""
    try:
        found = [_text_of(message) for message in _fields(content, _PIECES)]
    except (ValueError, IndexError, UnicodeDecodeError):
        found = []
    if not 0 < len(found) <= MAX_PIECES:
        told = "it is empty" if not content else f"{len(content)} bytes that hold no pieces"
        raise CheckpointError(f"{what}: not a sentencepiece model ({told})")
    return found


def _text_of(message: bytes) -> str:
    return next(_fields(message, _PIECE_TEXT)).decode()


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    """The contents of a protobuf message's fields of that number, which hold bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            _, at = _varint(message, at)
            continue
        length, at = _varint(message, at) if kind == 2 else (_FIXED.get(kind, -1), at)
        if length < 0 or at + length > len(message):
            raise ValueError(f"field {number} of kind {kind} goes beyond the message")
        if number == wanted and kind == 2:
            yield message[at : at + length]
        at += length
    if at > len(message):
        raise ValueError("cut short")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def fast_value(text: str, key: str) -> Any:
    """What stands behind the first `key` of a tokenizer.json; None where nothing does, or no JSON.

    The rest is not parsed: its merges are most of it, and as objects take a hundred times as much memory as the vocabulary.
    """
    at = text.find(f'"{key}"')
    colon = text.find(":", at)
    if at < 0 or colon < 0:
        return None
    while colon + 1 < len(text) and text[colon + 1].isspace():
        colon += 1
    try:
        value, _ = json.JSONDecoder().raw_decode(text, colon + 1)
    except (ValueError, RecursionError):
        return None
    return value


def read_fast(folder: Path) -> str | None:
    """The text of `folder`/tokenizer.json; None where there is none that is worth a look."""
    path = folder / FAST
    if not path.is_file():
        return None
    content = read_whole(path, MAX_BYTES)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def model_for(folder: Path, others: Sequence[Path]) -> Path | None:
    """The tokenizer.model that goes with the tokenizer files in `folder`: its own, or the first of `others` with the vocabulary
    of its tokenizer.json. CheckpointError names a file of the others that is broken."""
    if (folder / MODEL).is_file():
        return folder / MODEL
    text = read_fast(folder)
    vocabulary = None if text is None else fast_value(text, "vocab")
    if not isinstance(vocabulary, dict):
        return None
    for path in (other / MODEL for other in others):
        if path.is_file() and _agree(pieces(read_whole(path, MAX_BYTES), str(path)), vocabulary):
            return path
    return None


def _agree(known: Iterable[str], vocabulary: dict[str, Any]) -> bool:
    """Whether every piece has its id in `vocabulary`; added tokens may stand there as well."""
    return all(vocabulary.get(piece) == number for number, piece in enumerate(known))
