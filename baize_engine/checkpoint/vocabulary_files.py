"""The vocabulary files of a tokenizer: tokenizer.model, sentencepiece's, and tokenizer.json. Runs no tokenizer.

Newer versions of transformers write tokenizer.json instead of tokenizer.model. For a LLaMA of 2023 both hold the same, so a
finetune that has only tokenizer.json can use its base's tokenizer.model. Read are the pieces of the one and two values of the
other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from baize_engine.checkpoint.file_io import opened, read_whole
from baize_engine.checkpoint.os_errors import is_file
from baize_engine.errors import CheckpointError

MODEL, FAST = "tokenizer.model", "tokenizer.json"
MAX_MODEL = 8 << 20  # bytes; LLaMA's has 0.5 MB
# bytes; Llama-3's has 9 to 17 MB, Gemma's 34. The library's memory was up to 26 times as much, for made-up vocabularies
MAX_FAST = 40 << 20
# bytes; one of 32000 pieces has 1.8 to 3.5 MB. Larger ones, such as Llama-3's, do not match a sentencepiece model
MAX_COMPARED = 12 << 20
MAX_ADDED = 1 << 20  # characters of the list of added tokens in tokenizer.json
MAX_FIELDS = 1 << 19  # in tokenizer.model; each piece is a field
_PIECES = 1  # ModelProto.pieces
_PIECE_TEXT = 1  # ModelProto.SentencePiece.piece
_FIXED = {1: 8, 5: 4}  # protobuf wire type of fixed length -> bytes
_ENTRY = re.compile(r'\s*("(?:[^"\\]|\\.){0,400}")\s*:\s*(\d{1,9})\s*(,|\})')  # a piece of a vocabulary and its id


def pieces(content: bytes, what: str) -> list[str]:
    """The pieces of a sentencepiece model, in the order of their ids. CheckpointError names `what` if there are none."""
    try:
        texts = [next(_fields(message, _PIECE_TEXT)).decode() for message in _fields(content, _PIECES)]
    except (ValueError, IndexError, StopIteration):  # StopIteration: a piece without text
        texts = []
    if not texts:
        reason = "it is empty" if not content else f"{len(content)} bytes that hold no pieces"
        raise CheckpointError(f"{what}: not a sentencepiece model ({reason})")
    return texts


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    """The contents of a protobuf message's length-delimited fields number `wanted`."""
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
    """(value, end) of the protobuf varint at byte `at`."""
    value = 0
    for shift in range(0, 64, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def added_in(text: str) -> list[Any]:
    """The added tokens that a tokenizer.json lists; empty if the list is absent or malformed."""
    begin = _value_start(text, "added_tokens")
    try:
        value, _ = json.JSONDecoder().raw_decode(text[begin : begin + MAX_ADDED]) if begin else (None, 0)
    except (ValueError, RecursionError):
        return []
    return value if isinstance(value, list) else []


def has_vocabulary(text: str, wanted: Sequence[str]) -> bool:
    """Whether the vocabulary of a tokenizer.json has each piece of `wanted` with its index as its id. It may have others.

    Reads entry by entry, because a hostile vocabulary could take any amount of memory as Python objects.
    """
    found = bytearray(len(wanted))
    try:
        for spelling, token_id in _vocabulary(text):
            if token_id < len(wanted):
                found[token_id] = json.loads(spelling) == wanted[token_id]
                if not found[token_id]:
                    return False
    except ValueError:
        return False
    return bool(wanted) and all(found)


def token_count(content: bytes) -> int | None:
    """One more than the highest id that a tokenizer.json lists; None if its vocabulary is no object of pieces and ids."""
    try:
        text = content.decode()
        highest = max((token_id for _, token_id in _vocabulary(text)), default=-1)
    except ValueError:
        return None
    ids = (token.get("id") for token in added_in(text) if isinstance(token, dict))
    return 1 + max([highest, *(token_id for token_id in ids if type(token_id) is int)])


def _vocabulary(text: str) -> Iterator[tuple[str, int]]:
    """(piece as JSON, id) of each entry of a tokenizer.json's vocabulary. ValueError, at its end, unless it is whole."""
    at = _value_start(text, "vocab")
    if not at or text[at] != "{":
        raise ValueError("no object of pieces")
    at += 1
    while entry := _ENTRY.match(text, at):
        yield entry[1], int(entry[2])
        at = entry.end()
        if entry[3] == "}":
            return
    raise ValueError(f"no piece and id at {at}")


def _value_start(text: str, key: str) -> int:
    """Where the value of the first `key` begins; 0 if there is none."""
    match = re.search(rf'"{key}"\s*:\s*(?=\S)', text)
    return match.end() if match else 0


def read_fast(folder: Path) -> str | None:
    """The text of `folder`/tokenizer.json; None if it is absent, too large or not UTF-8."""
    path = folder / FAST
    if not is_file(path):
        return None
    with opened(path) as file:
        return fast_text(file.read(MAX_COMPARED + 1))


def fast_text(content: bytes) -> str | None:
    """The text of a tokenizer.json; None if it is too large or not UTF-8."""
    if len(content) > MAX_COMPARED:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def why_not_fast() -> str | None:
    """Why a tokenizer.json cannot be used on this machine; None if it can."""
    if find_spec("tokenizers") is None:
        return "text needs the tokenizers library here: pip install 'baize-engine[tokenizers]'"
    return None


def model_for(folder: Path, others: Sequence[Path]) -> Path | None:
    """The tokenizer.model for the tokenizer files in `folder`; None if there is none.

    It is the folder's own, or the first in `others` that has the vocabulary of the folder's tokenizer.json.
    """
    if is_file(folder / MODEL):
        return folder / MODEL
    candidates = [other / MODEL for other in others if is_file(other / MODEL)]
    text = read_fast(folder) if candidates else None
    return next((path for path in candidates if text and has_vocabulary(text, _pieces_of(path))), None)


def _pieces_of(path: Path) -> list[str]:
    """The pieces of a model; none if the file is broken, so that it matches no vocabulary."""
    try:
        return pieces(read_whole(path, MAX_MODEL), str(path))
    except CheckpointError:
        return []
