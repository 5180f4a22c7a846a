"""Text to token ids and back: a sentencepiece model and the tokens that a finetune added. Knows no model, no chat format.

Security: text never becomes a control token ("</s>") or a special added one ("<pad>") unless the caller of encode()
asks for it; a message that spells one is encoded as its characters. Added tokens that are not special are vocabulary
and are found in any text, the longest first.

Ids are sentencepiece's own, which is what models of 2023 were trained with; the begin and end ids are its own too unless
given, because configs of early converters carry wrong ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sentencepiece

from baize_engine.checkpoint import strict_json
from baize_engine.errors import CheckpointError, RequestError
from baize_engine.generation.text import SPACE, IncrementalDecoder

MODEL_FILE = "tokenizer.model"
# Protobuf merges a message appended to its own kind: ModelProto.normalizer_spec (field 3) { add_dummy_prefix (3): false }.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class Tokenizer:
    """A sentencepiece model plus added tokens, given as text -> (id, special)."""

    def __init__(
        self,
        model: bytes,
        added: Mapping[str, tuple[int, bool]] | None = None,
        bos_id: int | None = None,
        eos_id: int | None = None,
    ) -> None:
        self._fresh = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._continuing = sentencepiece.SentencePieceProcessor(model_proto=model + _NO_DUMMY_PREFIX)
        self._pieces = _piece_table(self._fresh)
        self._added: dict[int, str] = {}
        ordinary: dict[str, int] = {}
        special: dict[str, int] = {}
        for token_id in range(len(self._pieces)):
            if self._fresh.is_control(token_id):
                special[self._fresh.id_to_piece(token_id)] = token_id
                self._pieces[token_id] = ""
        for text, (token_id, is_special) in (added or {}).items():
            if token_id < len(self._pieces):
                continue  # newer files list the model's own <unk>, <s> and </s> among the added ones
            (special if is_special else ordinary)[text] = token_id
            self._added[token_id] = "" if is_special else text
        self._ordinary, self._special = ordinary, special
        self.bos_id = _own(self._fresh.bos_id()) if bos_id is None else bos_id
        self.eos_id = _own(self._fresh.eos_id()) if eos_id is None else eos_id
        self.strips_first_space, self.strips_all_spaces = _space_rules(self._fresh, self._pieces)

    @classmethod
    def from_folder(cls, folder: str | Path, bos_id: int | None = None, eos_id: int | None = None) -> Tokenizer:
        """Reads tokenizer.model, and added tokens from added_tokens.json and tokenizer_config.json, where present.

        An added token is special if tokenizer_config.json says so or special_tokens_map.json names it.
        CheckpointError names a file that is missing or broken.
        """
        folder = Path(folder)
        reason = why_no_tokenizer(folder)
        if reason:
            raise CheckpointError(reason)
        path = folder / MODEL_FILE
        try:
            return cls(path.read_bytes(), _read_added(folder), bos_id, eos_id)
        except RuntimeError as bad:  # sentencepiece's only error type
            raise CheckpointError(f"{path}: not a sentencepiece model ({bad})") from bad

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, pieces and added tokens together."""
        return max(len(self._pieces) - 1, *self._added, 0) + 1

    def encode(
        self, text: str, add_bos: bool = True, *, continues: bool = False, allow_special: bool = False
    ) -> list[int]:
        """The ids of `text`. Where it `continues` earlier ids it gets no dummy space in front.

        allow_special lets the spelling of control and special added tokens become their ids: never for users' text.
        """
        if not isinstance(text, str):
            raise RequestError(f"text is {text!r}, wanted a string")
        try:
            text.encode()
        except UnicodeEncodeError as bad:
            raise RequestError(f"text has a lone surrogate at character {bad.start}, wanted valid Unicode") from bad
        if add_bos and self.bos_id is None:
            raise RequestError("this tokenizer has no begin token, wanted add_bos=False")
        ids = [self.bos_id] if add_bos and self.bos_id is not None else []
        known = {**self._ordinary, **self._special} if allow_special else self._ordinary
        for part in _split(text, known):
            if part in known:
                ids.append(known[part])
            else:
                ids += (self._continuing if continues else self._fresh).encode(part)
            continues = True
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens left out. RequestError names an id that is not in the vocabulary."""
        decoder = IncrementalDecoder(self)
        return "".join([decoder.push(token_id) for token_id in ids]) + decoder.flush()

    def piece(self, token_id: int) -> str | bytes:
        """What one id stands for, as `generation.text.Vocabulary` asks for it."""
        if 0 <= token_id < len(self._pieces):
            return self._pieces[token_id]
        if token_id not in self._added:
            raise RequestError(
                f"token id {token_id} stands for no text: the tokenizer has {len(self._pieces)} pieces and "
                f"{len(self._added)} added tokens"
            )
        return self._added[token_id]


def why_no_tokenizer(folder: Path) -> str | None:
    """None where the folder has a tokenizer that this class reads, else the reason that it has not."""
    if (folder / MODEL_FILE).is_file():
        return None
    if (folder / "tokenizer.json").is_file():
        return f"{folder}: has tokenizer.json only, wanted the sentencepiece file {MODEL_FILE} (of the same vocabulary)"
    return f"{folder / MODEL_FILE}: absent, wanted a sentencepiece model"


def _piece_table(model: Any) -> list[str | bytes]:
    table: list[str | bytes] = []
    for token_id in range(model.get_piece_size()):
        if model.is_byte(token_id):
            table.append(bytes([int(model.id_to_piece(token_id)[3:5], 16)]))  # spelled <0xE2>
        elif model.is_unknown(token_id):
            table.append(model.decode([token_id]))  # the model's own sign for unknown text, usually " ⁇ "
        else:
            table.append(model.id_to_piece(token_id))
    return table


def _space_rules(model: Any, pieces: list[str | bytes]) -> tuple[bool, bool]:
    """(strips_first_space, strips_all_spaces), tried out: sentencepiece does not show its normaliser's settings."""
    spaced = [i for i, piece in enumerate(pieces) if isinstance(piece, str) and _one_space_and_more(piece)]
    if not spaced or model.decode(spaced[:1]).startswith(" "):
        return False, False
    if SPACE not in pieces:
        return True, False
    return True, not model.decode([pieces.index(SPACE), spaced[0]]).startswith(" ")


def _one_space_and_more(piece: str) -> bool:
    return len(piece) > 1 and piece[0] == SPACE and piece[1] != SPACE


def _own(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None  # sentencepiece says -1 for "has none"


def _split(text: str, known: Mapping[str, int]) -> list[str]:
    if not known:
        return [text] if text else []
    longest_first = sorted(known, key=len, reverse=True)
    return [part for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text) if part]


def _read_added(folder: Path) -> dict[str, tuple[int, bool]]:
    named = _named_special(_read_json(folder / "special_tokens_map.json"))
    added: dict[str, tuple[int, bool]] = {}
    path = folder / "added_tokens.json"
    for text, token_id in _read_json(path).items():
        if not text or not isinstance(token_id, int) or token_id < 0:
            raise CheckpointError(f"{path}: {text!r}: {token_id!r}, wanted a token and its id")
        added[text] = (token_id, text in named)
    path = folder / "tokenizer_config.json"
    decoder = _read_json(path).get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{path}: added_tokens_decoder is {decoder!r}, wanted an object of ids")
    for key, entry in decoder.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not key.isdecimal() or not isinstance(content, str) or not content:
            raise CheckpointError(f"{path}: added_tokens_decoder {key!r}: {entry!r}, wanted an id and its content")
        added[content] = (int(key), bool(entry.get("special")) or content in named)
    return added


def _named_special(special_map: dict) -> set[str]:
    values = [v for value in special_map.values() for v in (value if isinstance(value, list) else [value])]
    texts = [v.get("content") if isinstance(v, dict) else v for v in values]  # written both ways over the years
    return {text for text in texts if isinstance(text, str)}


def _read_json(path: Path) -> dict[str, Any]:
    return strict_json.read(path) if path.is_file() else {}
