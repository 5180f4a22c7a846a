"""A sentencepiece model and the tokens that a finetune added, as a Tokenizer. Knows no model, no chat format.

Special tokens may be user-defined symbols of sentencepiece, which it finds in any text: their ids are replaced by those of the
characters. Added tokens that are not special are found in any text, the longest first.

Ids are sentencepiece's own, which models of 2023 were trained with. `special_ids` says which of them begin and end a text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Set
from typing import Any

import sentencepiece

from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.checkpoint.vocabulary_files import MODEL
from baize_engine.errors import CheckpointError, RequestError
from baize_engine.text.incremental import SPACE, FirstSpaces, Rules
from baize_engine.text.special_ids import Own, text_ids
from baize_engine.text.tokenizer import Tokenizer

# Protobuf merges a message appended to its own kind: ModelProto.normalizer_spec (field 3) { add_dummy_prefix (3): false }.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model together with the files beside it.

    model: the content of tokenizer.model.
    files: the other tokenizer files; None if there are none.
    rows: ids that the model has (rows of its embedding); None: one for each token. Added tokens beyond them are ignored, since
    the model can neither read nor produce them.
    """

    def __init__(self, model: bytes, files: TokenizerFiles | None = None, rows: int | None = None) -> None:
        self.files = files = files or TokenizerFiles()
        self._fresh = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._continuing = sentencepiece.SentencePieceProcessor(model_proto=model + _NO_DUMMY_PREFIX)
        self._pieces = _piece_table(self._fresh)
        empty = [i for i, piece in enumerate(self._pieces) if piece == ""]
        self._special = {self._fresh.id_to_piece(i): i for i in empty if self._fresh.is_control(i)}
        self._ordinary: dict[str, int] = {}
        self._added: dict[int, str] = {}
        # newer files also list the model's own <unk>, <s> and </s>: `added` leaves out ids of pieces
        for text, (token_id, is_special) in files.added(len(self._pieces), rows).items():
            self._added[token_id] = "" if is_special else text
            if text:  # early converters wrote "" for special tokens, which occurs in no text
                (self._special if is_special else self._ordinary)[text] = token_id
        self._rows = max(self.vocab_size, rows or 0)
        self.rules = Rules(_first_spaces(self._fresh, self._pieces))
        own = (self._fresh.bos_id(), self._fresh.eos_id(), self._fresh.unk_id())
        # sentencepiece says -1 for "none"
        self.ids = text_ids(files, Own(*(i if i >= 0 else None for i in own)), self.id_of)
        self._hide(files)
        hidden = {i for i in self._special.values() if i < len(self._pieces) and not self._fresh.is_control(i)}
        self._spelled_out = {token_id: self._spell(token_id, hidden) for token_id in hidden}

    @classmethod
    def parse(cls, model: bytes, files: TokenizerFiles, rows: int | None) -> SentencePieceTokenizer:
        """Make a tokenizer as the constructor does. CheckpointError names a broken model as a file of `files.folder`."""
        path = files.folder / MODEL
        if not model:  # sentencepiece would take it for a model without pieces
            raise CheckpointError(f"{path}: not a sentencepiece model (it is empty)")
        try:
            return cls(model, files, rows)
        except RuntimeError as bad:  # sentencepiece's only error type
            raise CheckpointError(f"{path}: not a sentencepiece model ({bad})") from bad

    def _hide(self, files: TokenizerFiles) -> None:
        """Make pieces special that sentencepiece takes for text: the BOS and EOS token, and those the files call special."""
        around = [i for i in (self.bos_id, self.eos_id) if i is not None and i < len(self._pieces)]
        marked = {*map(self._fresh.id_to_piece, around), *files.listed_special()}
        for text in (marked | files.named_special()) - self._special.keys():
            found = self.id_of(text)
            if found is None or found >= len(self._pieces) or found == self.ids.own.unk or not text.strip(SPACE):
                continue  # spaces stay text: sentencepiece itself puts one before a text
            if self._fresh.get_score(found) < 0:  # learnt from text; user-defined symbols score 0
                word = text not in marked and text.strip(SPACE).isalnum()
                if word or len(text) == 1:  # "!" as padding, or "user" named as special: both occur in any text
                    continue
            if isinstance(self._pieces[found], str):  # not a byte
                self._pieces[found] = ""
                self._special[text] = found

    def _spell(self, token_id: int, hidden: Set[int]) -> list[int]:
        """Encode a hidden token's text without hidden ids: cut after its first character, or into single characters.

        A character that is itself hidden becomes its bytes, or "unknown" if the model has no byte pieces.
        """
        text = self._fresh.id_to_piece(token_id).replace(SPACE, " ")
        ids: list[int] = [*self._continuing.encode(text[:1]), *self._continuing.encode(text[1:])]
        if hidden.isdisjoint(ids):
            return ids
        ids = []
        for character in text:
            found = self._continuing.encode(character)
            if not hidden.isdisjoint(found):
                table = [self._fresh.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]
                has_bytes = all(map(self._fresh.is_byte, table))
                found = table if has_bytes else [self._fresh.unk_id()]
            ids += found
        return ids

    @property
    def vocab_size(self) -> int:
        return max(len(self._pieces) - 1, *self._added, 0) + 1

    @property
    def special_tokens(self) -> Collection[str]:
        return self._special.keys()

    def id_of(self, token: str) -> int | None:
        for known in (self._special, self._ordinary):
            if token in known:
                return known[token]
        found = self._fresh.piece_to_id(token) if token.isprintable() else -1
        return found if 0 <= found < len(self._pieces) and self._fresh.id_to_piece(found) == token else None

    def _encode(self, text: str, continues: bool, allow_special: bool) -> list[int]:
        known = {**self._ordinary, **self._special} if allow_special else self._ordinary
        spelled_out = {} if allow_special else self._spelled_out
        ids: list[int] = []
        for part in _split(text, known):
            if part in known:
                ids.append(known[part])
            else:
                found = (self._continuing if continues else self._fresh).encode(part)
                # by id, not by text: a normalising model also finds a token in characters other than its own
                if spelled_out and not spelled_out.keys().isdisjoint(found):
                    found = [plain for token_id in found for plain in spelled_out.get(token_id, (token_id,))]
                ids += found
            continues = True
        return ids

    def piece(self, token_id: int) -> str | bytes:
        if 0 <= token_id < len(self._pieces):
            return self._pieces[token_id]
        if token_id in self._added:
            return self._added[token_id]
        if len(self._pieces) <= token_id < self._rows:
            return ""  # a padding row, or a token whose name is lost
        raise RequestError(
            f"token id {token_id} stands for no text: the tokenizer has {len(self._pieces)} pieces and "
            f"{len(self._added)} added tokens, the model {self._rows} ids"
        )


def _piece_table(model: Any) -> list[str | bytes]:
    """What each id of a sentencepiece model stands for, by id; "" for a control token."""
    table: list[str | bytes] = []
    unknown = model.unk_id()
    for token_id in range(model.get_piece_size()):  # two questions an id: of 32000, each takes 4 ms
        piece = model.id_to_piece(token_id)
        if model.is_control(token_id):
            table.append("")
        elif token_id == unknown:
            table.append(model.decode([token_id]))  # the model's mark for unknown text, usually " ⁇ "
        elif piece.startswith("<0x") and model.is_byte(token_id):
            table.append(bytes([int(piece[3:5], 16)]))  # spelled <0xE2>
        else:
            table.append(piece)
    return table


def _first_spaces(model: Any, pieces: list[str | bytes]) -> FirstSpaces:
    """Found by trial: sentencepiece does not expose its normaliser's settings."""
    one = re.compile(f"{SPACE}[^{SPACE}]")
    spaced = next((i for i, piece in enumerate(pieces) if isinstance(piece, str) and one.match(piece)), None)
    if spaced is None or model.decode([spaced]).startswith(" "):
        return FirstSpaces.KEPT
    if SPACE not in pieces or model.decode([pieces.index(SPACE), spaced]).startswith(" "):
        return FirstSpaces.ONE
    return FirstSpaces.ONE_EACH


def _split(text: str, known: Mapping[str, int]) -> list[str]:
    """Cut `text` at the tokens in `known`, the longest first; the parts joined are `text`."""
    if not known:
        return [text] if text else []
    longest_first = sorted(known, key=len, reverse=True)
    return [part for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text) if part]
