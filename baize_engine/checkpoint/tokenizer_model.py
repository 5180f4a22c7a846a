"""tokenizer.model, sentencepiece's own file, beside tokenizer.json, which newer versions of transformers write in its place.

Both hold the same vocabulary for a LLaMA, so that a finetune that comes with tokenizer.json alone can take its base's
tokenizer.model along. Nothing is run: of the one the pieces are read, of the other two of its values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from baize_engine.checkpoint.file_io import read_whole
from baize_engine.checkpoint.os_errors import is_file
from baize_engine.errors import CheckpointError

MODEL, FAST = "tokenizer.model", "tokenizer.json"
MAX_MODEL = 8 << 20  # bytes; LLaMA's has 0.5 MB
# bytes; that of 32000 pieces has 1.8 to 3.5 MB. Larger ones, such as Llama-3's, are of no such model
MAX_FAST = 12 << 20
MAX_ADDED = 1 << 20  # characters of its list of added tokens
MAX_FIELDS = 1 << 19  # of tokenizer.model: each piece is one
_PIECES = 1  # the field of ModelProto, and of each piece the field of its text
_PIECE_TEXT = 1
_FIXED = {1: 8, 5: 4}  # bytes of protobuf's wire types of fixed length
_ENTRY = re.compile(r'\s*("(?:[^"\\]|\\.){0,400}")\s*:\s*(\d{1,9})\s*(,|\})')  # of a vocabulary: a piece and its id


def pieces(content: bytes, what: str) -> list[str]:
    """The pieces of a sentencepiece model by id. CheckpointError, naming `what`, where it is not one, or empty."""
    try:
        found = [_text_of(message) for message in _fields(content, _PIECES)]
    except (ValueError, IndexError):
        found = []
    if not found:
        told = "it is empty" if not content else f"{len(content)} bytes that hold no pieces"
        raise CheckpointError(f"{what}: not a sentencepiece model ({told})")
    return found


def _text_of(message: bytes) -> str:
    text = next(_fields(message, _PIECE_TEXT), None)
    if text is None:
        raise ValueError("a piece without text")
    return text.decode()


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    """The contents of a protobuf message's fields of that number, which hold bytes."""
    at = 0
    for _ in range(MAX_FIELDS):
        if at == len(message):
            return
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
    raise ValueError(f"more than {MAX_FIELDS} fields")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def added_in(text: str) -> list[Any]:
    """The added tokens that a tokenizer.json lists; none where it has no such list, or one of another form."""
    begin = _value(text, "added_tokens")
    try:
        value, _ = json.JSONDecoder().raw_decode(text[begin : begin + MAX_ADDED]) if begin else (None, 0)
    except (ValueError, RecursionError):
        return []
    return value if isinstance(value, list) else []


def has_vocabulary(text: str, wanted: Sequence[str]) -> bool:
    """Whether in a tokenizer.json each of these pieces has its place as its id; added tokens may stand there as well.

    Entry by entry: as objects, a stranger's vocabulary could take any memory.
    """
    at, found = _value(text, "vocab"), bytearray(len(wanted))
    if not wanted or not at or text[at] != "{":
        return False
    at += 1
    while entry := _ENTRY.match(text, at):
        spelt, number, mark = entry.groups()
        if int(number) < len(wanted):
            try:
                piece = json.loads(spelt)
            except ValueError:
                return False
            if piece != wanted[int(number)]:
                return False
            found[int(number)] = 1
        at = entry.end()
        if mark == "}":
            return all(found)
    return False


def _value(text: str, key: str) -> int:
    """Where the value of the first `key` begins; 0 where there is none."""
    found = re.search(rf'"{key}"\s*:\s*(?=\S)', text)
    return found.end() if found else 0


def read_fast(folder: Path) -> str | None:
    """The text of `folder`/tokenizer.json; None where there is none that is worth a look."""
    path = folder / FAST
    if not is_file(path) or path.stat().st_size > MAX_FAST:
        return None
    return fast_text(read_whole(path, MAX_FAST))


def fast_text(content: bytes) -> str | None:
    """The text of a tokenizer.json; None where it is none that is worth a look."""
    if len(content) > MAX_FAST:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def model_for(folder: Path, others: Sequence[Path]) -> Path | None:
    """The tokenizer.model that goes with the tokenizer files in `folder`: its own, or the first of `others` with the vocabulary
    of its tokenizer.json."""
    if is_file(folder / MODEL):
        return folder / MODEL
    candidates = [path for path in (other / MODEL for other in others) if is_file(path)]
    text = read_fast(folder) if candidates else None
    if text is None:
        return None
    return next((path for path in candidates if has_vocabulary(text, _pieces_of(path))), None)


def _pieces_of(path: Path) -> list[str]:
    """Those of a model; none of a file that is broken, which then is not the one that is looked for."""
    try:
        return pieces(read_whole(path, MAX_MODEL), str(path))
    except CheckpointError:
        return []
