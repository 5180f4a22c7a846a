"""A tokenizer's files, of any version of transformers: its vocabulary, added tokens, roles of tokens. Runs no tokenizer.

The vocabulary is in tokenizer.model, sentencepiece's file, or in tokenizer.json, which newer versions of transformers write
instead. For a LLaMA of 2023 both hold the same, so a finetune that has only tokenizer.json can use its base's tokenizer.model.
Read are the pieces of the one and two values of the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.file_io import opened, read_whole
from baize_engine.checkpoint.os_errors import is_file
from baize_engine.errors import CheckpointError
from baize_engine.printable import brief

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
TOKENIZER_CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TEMPLATE = "chat_template.jinja"
SETTINGS = (TOKENIZER_CONFIG, MAP, ADDED)
MAX_ID_DIGITS = 18
MAX_TEMPLATE = 1 << 20  # bytes


@dataclass(frozen=True)
class TokenizerFiles:
    """The objects in tokenizer_config.json, special_tokens_map.json and added_tokens.json of `folder`; {} if absent.

    `fast_added`: the added tokens in tokenizer.json if no other file lists any, as in folders of transformers 5.
    `template`: the text of chat_template.jinja.
    """

    folder: Path = Path()
    config: Mapping[str, Any] = field(default_factory=dict)
    special_map: Mapping[str, Any] = field(default_factory=dict)
    added_tokens: Mapping[str, Any] = field(default_factory=dict)
    fast_added: Sequence[Any] = ()
    template: str = ""

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Read the files in `folder`. CheckpointError names one that is not a JSON object."""
        paths = (folder / name for name in SETTINGS)
        parsed = [strict_json.read_settings(path) if is_file(path) else {} for path in paths]
        template = read_whole(folder / TEMPLATE, MAX_TEMPLATE) if is_file(folder / TEMPLATE) else b""
        return cls._of(folder, parsed, template, lambda: read_fast(folder))

    @classmethod
    def of(cls, contents: Mapping[str, bytes], folder: Path) -> TokenizerFiles:
        """Parse the files among {name: content}; errors name them as files of `folder`."""
        parsed = [strict_json.parse(contents.get(name, b"{}"), str(folder / name), strict=False) for name in SETTINGS]
        return cls._of(folder, parsed, contents.get(TEMPLATE, b""), lambda: fast_text(contents.get(FAST, b"")))

    @classmethod
    def _of(
        cls, folder: Path, parsed: Sequence[Mapping[str, Any]], template: bytes, fast: Callable[[], str | None]
    ) -> TokenizerFiles:
        config, special_map, added = parsed
        listed = added or "added_tokens_decoder" in config
        try:
            text = template.decode()
        except UnicodeDecodeError as bad:
            raise CheckpointError(f"{folder / TEMPLATE}: not UTF-8 at byte {bad.start}") from None
        return cls(folder, config, special_map, added, () if listed else added_in(fast() or ""), text)

    def named(self, key: str) -> tuple[str, str]:
        """(text, file) of the token with the role `key` ("eos_token"); the text is "" if there is none.

        The map takes precedence, unless tokenizer_config.json lists the added tokens: as in transformers.
        """
        files = [(self.special_map, MAP), (self.config, TOKENIZER_CONFIG)]
        if "added_tokens_decoder" in self.config:
            files.reverse()
        for file, name in files:
            if key in file:
                return content_of(file[key]) or "", name
        return "", TOKENIZER_CONFIG

    def roles(self) -> dict[str, str]:
        """The tokens with a role as {"eos_token": "</s>"}: what transformers gives to a chat template."""
        keys = [key for key in (*self.config, *self.special_map) if key.endswith("_token")]
        return {key: text for key in keys if (text := self.named(key)[0])}

    def chat_template(self) -> tuple[str, str]:
        """(source, file) of the chat template; the source is "" if there is none. Of several, the one named "default"."""
        if self.template:
            return self.template, TEMPLATE
        found = self.config.get("chat_template")
        for entry in found if isinstance(found, list) else ():
            if isinstance(entry, dict) and entry.get("name") == "default":
                found = entry.get("template")
        return found if isinstance(found, str) else "", TOKENIZER_CONFIG

    def added(self, first: int, last: int | None) -> dict[str, tuple[int, bool]]:
        """Added tokens as text -> (id, special), for ids in [first, last); None: no upper limit. Others are not checked.

        A token is special if its entry says so or a file gives it a role. CheckpointError names an entry that is not a token
        with its id.
        """
        special = self.named_special()
        found: dict[str, tuple[int, bool]] = {}
        for token_id, entry, where in self._entries():
            if first <= token_id and (last is None or token_id < last):
                text = content_of(entry)
                if text is None:
                    raise CheckpointError(f"{where}: {brief(entry)}, wanted an id and its content")
                found[text] = (token_id, _marked_special(entry) or text in special)
        return found

    def _entries(self) -> Iterator[tuple[int, Any, str]]:
        """(id, entry, where it is) of each added token. An entry is the token's text, or an object with `content`."""
        for text, token_id in self.added_tokens.items():
            where = f"{self.folder / ADDED}: {brief(text)}"
            if type(token_id) is not int or token_id < 0:
                raise CheckpointError(f"{where}: {brief(token_id)}, wanted a token and its id")
            yield token_id, text, where
        for entry in self.fast_added:
            if isinstance(entry, dict) and type(entry.get("id")) is int and content_of(entry):
                yield entry["id"], entry, FAST
        decoder = self.config.get("added_tokens_decoder") or {}
        where = f"{self.folder / TOKENIZER_CONFIG}: added_tokens_decoder"
        if not isinstance(decoder, dict):
            raise CheckpointError(f"{where} is {brief(decoder)}, wanted an object of ids")
        for key, entry in decoder.items():
            if not _is_id(key):
                raise CheckpointError(f"{where} {brief(key)}: {brief(entry)}, wanted an id and its content")
            yield int(key), entry, f"{where} {brief(key)}"

    def listed_special(self) -> dict[str, int]:
        """Tokens that tokenizer_config.json lists as special, text -> id. Malformed entries are ignored."""
        decoder = self.config.get("added_tokens_decoder")
        found: dict[str, int] = {}
        for key, entry in decoder.items() if isinstance(decoder, dict) else ():
            text = content_of(entry)
            if text and _marked_special(entry) and _is_id(key):
                found[text] = int(key)
        return found

    def named_special(self) -> set[str]:
        """The texts of tokens that a file gives a role, singly ("eos_token") or in a list ("additional_special_tokens")."""
        values = [value for key, value in self.config.items() if key.endswith(("_token", "_tokens"))]
        values += self.special_map.values()
        tokens = [token for value in values for token in (value if isinstance(value, list) else [value])]
        return {text for text in map(content_of, tokens) if text is not None}


def content_of(token: Any) -> str | None:
    """The text of a token in either form: a string, or an object with `content`. None for anything else."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _marked_special(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("special") is True


def _is_id(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) <= MAX_ID_DIGITS


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
    at, found = _value_start(text, "vocab"), bytearray(len(wanted))
    if not wanted or not at or text[at] != "{":
        return False
    at += 1
    while entry := _ENTRY.match(text, at):
        spelling, token_id, mark = entry.groups()
        if int(token_id) < len(wanted):
            try:
                found[int(token_id)] = json.loads(spelling) == wanted[int(token_id)]
            except ValueError:
                return False
            if not found[int(token_id)]:
                return False
        at = entry.end()
        if mark == "}":
            return all(found)
    return False


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
