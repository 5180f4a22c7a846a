"""Text to token ids and back: a sentencepiece model and the tokens that a finetune added. Knows no model, no chat format.

Security: text never becomes a control token ("</s>") or a special added one ("<pad>") unless the caller of encode() asks for
it; a message that spells one is encoded as its characters. That includes special tokens that are user-defined symbols of
sentencepiece, which it finds in any text: their ids are replaced by those of the characters.
Added tokens that are not special are vocabulary and are found in any text, the longest first.

Ids are sentencepiece's own, which models of 2023 were trained with. `special_ids` says which of them begin and end a text.
A model may have rows for further ids, such as a vocabulary padded to a multiple of 64; they stand for no text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import sentencepiece

from baize_engine.checkpoint.file_io import read_whole
from baize_engine.checkpoint.os_errors import is_file
from baize_engine.checkpoint.tokenizer_files import FAST, MAX_MODEL, MODEL, TokenizerFiles
from baize_engine.errors import CheckpointError, RequestError
from baize_engine.text.incremental import SPACE, IncrementalDecoder
from baize_engine.text.special_ids import Own, text_ids

# Protobuf merges a message appended to its own kind: ModelProto.normalizer_spec (field 3) { add_dummy_prefix (3): false }.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class Tokenizer:
    """A sentencepiece model together with the files beside it.

    model: the content of tokenizer.model.
    files: the other tokenizer files; None if there are none.
    rows: ids that the model has (rows of its embedding); None: one for each token. Added tokens beyond them are ignored, since
    the model can neither read nor produce them.
    """

    def __init__(self, model: bytes, files: TokenizerFiles | None = None, rows: int | None = None) -> None:
        files = files or TokenizerFiles()
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
        self.strips_first_space, self.strips_all_spaces = _space_rules(self._fresh, self._pieces)
        own = (self._fresh.bos_id(), self._fresh.eos_id(), self._fresh.unk_id())
        # sentencepiece says -1 for "none"
        self.ids = text_ids(files, Own(*(i if i >= 0 else None for i in own)), self.id_of)
        self.bos_id, self.eos_id = self.ids.bos_id, self.ids.eos_id
        self._hide(files)
        hidden = {i for i in self._special.values() if i < len(self._pieces) and not self._fresh.is_control(i)}
        self._spelled_out = {token_id: self._spell(token_id, hidden) for token_id in hidden}

    @classmethod
    def from_folder(cls, folder: str | Path, rows: int | None = None) -> Tokenizer:
        """Read tokenizer.model and the files of `TokenizerFiles` beside it.

        rows: as in the constructor. CheckpointError names a file that is missing or broken.
        """
        folder = Path(folder)
        reason = why_no_tokenizer(folder)
        if reason:
            raise CheckpointError(reason)
        return cls.parse(read_whole(folder / MODEL, MAX_MODEL), TokenizerFiles.read(folder), rows)

    @classmethod
    def parse(cls, model: bytes, files: TokenizerFiles, rows: int | None) -> Tokenizer:
        """Make a tokenizer as the constructor does. CheckpointError names a broken model as a file of `files.folder`."""
        path = files.folder / MODEL
        if not model:  # sentencepiece would take it for a model without pieces
            raise CheckpointError(f"{path}: not a sentencepiece model (it is empty)")
        try:
            return cls(model, files, rows)
        except RuntimeError as bad:  # sentencepiece's only error type
            raise CheckpointError(f"{path}: not a sentencepiece model ({bad})") from bad

    def _hide(self, files: TokenizerFiles) -> None:
        """Make pieces special that sentencepiece takes for text: the begin and end token, and those the files call special."""
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
        """One more than the highest id of pieces and added tokens."""
        return max(len(self._pieces) - 1, *self._added, 0) + 1

    def id_of(self, token: str) -> int | None:
        """The id of the token spelled `token`, special or not; None if there is none."""
        for known in (self._special, self._ordinary):
            if token in known:
                return known[token]
        found = self._fresh.piece_to_id(token) if token.isprintable() else -1
        return found if 0 <= found < len(self._pieces) and self._fresh.id_to_piece(found) == token else None

    def encode(
        self,
        text: str,
        add_bos: bool | None = None,
        *,
        add_eos: bool | None = False,
        continues: bool = False,
        allow_special: bool = False,
    ) -> list[int]:
        """Encode `text` as ids.

        add_bos, add_eos: whether to add the begin id in front and the end id behind; None: as the tokenizer's files say.
        continues: `text` follows earlier ids, and so gets no dummy space in front.
        allow_special: control and special added tokens spelled in `text` become their ids; never for untrusted text.
        Raises RequestError if `text` is no string or not valid Unicode, or a begin or end id is wanted and there is none.
        """
        if not isinstance(text, str):
            raise RequestError(f"text is {text!r}, wanted a string")
        try:
            text.encode()
        except UnicodeEncodeError as bad:
            raise RequestError(f"text has a lone surrogate at character {bad.start}, wanted valid Unicode") from bad
        ids = _around("begin", self.bos_id, self.ids.adds_bos if add_bos is None else add_bos)
        end = _around("end", self.eos_id, self.ids.adds_eos if add_eos is None else add_eos)
        known = {**self._ordinary, **self._special} if allow_special else self._ordinary
        spelled_out = {} if allow_special else self._spelled_out
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
        return ids + end

    def decode(self, ids: Iterable[int]) -> str:
        """Decode `ids`, leaving out special tokens. RequestError names an id that is not in the vocabulary."""
        decoder = IncrementalDecoder(self)
        return "".join([decoder.push(token_id) for token_id in ids]) + decoder.flush()

    def piece(self, token_id: int) -> str | bytes:
        """The text or byte of one id, as `incremental.Vocabulary` wants it. RequestError if the id is not in the vocabulary."""
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


def why_no_tokenizer(folder: Path) -> str | None:
    """Why `folder` has no tokenizer that `Tokenizer` reads; None if it has one."""
    if is_file(folder / MODEL):
        return None
    if is_file(folder / FAST):
        return f"{folder}: has only {FAST}, wanted the sentencepiece file {MODEL} (of the same vocabulary)"
    return f"{folder / MODEL}: absent, wanted a sentencepiece model"


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


def _space_rules(model: Any, pieces: list[str | bytes]) -> tuple[bool, bool]:
    """(strips_first_space, strips_all_spaces), found by trial: sentencepiece does not expose its normaliser's settings."""
    one = re.compile(f"{SPACE}[^{SPACE}]")
    spaced = next((i for i, piece in enumerate(pieces) if isinstance(piece, str) and one.match(piece)), None)
    if spaced is None or model.decode([spaced]).startswith(" "):
        return False, False
    if SPACE not in pieces:
        return True, False
    return True, not model.decode([pieces.index(SPACE), spaced]).startswith(" ")


def _around(which: str, token_id: int | None, wanted: bool) -> list[int]:
    """The begin or end id (`which`) as a list, empty unless it is wanted."""
    if wanted and token_id is None:
        raise RequestError(
            f"this tokenizer has no {which} token, wanted add_{'bos' if which == 'begin' else 'eos'}=False"
        )
    return [token_id] if wanted and token_id is not None else []


def _split(text: str, known: Mapping[str, int]) -> list[str]:
    """Cut `text` at the tokens in `known`, the longest first; the parts joined are `text`."""
    if not known:
        return [text] if text else []
    longest_first = sorted(known, key=len, reverse=True)
    return [part for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text) if part]
