"""Tokenizer: text to token ids and back, whichever library serves the files. Knows no library, no model, no chat format.

`choose` makes the tokenizer of a folder. Security, which every kind keeps: text never becomes a special token ("</s>",
"<|eot_id|>") unless the caller of encode() asks for it; a text that spells one is encoded as its characters. Added tokens that
are not special are vocabulary and are found in any text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable

from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.errors import RequestError
from baize_engine.text.incremental import IncrementalDecoder, Rules
from baize_engine.text.special_ids import TextIds


class Tokenizer(ABC):
    """What turns text into ids and back.

    files: those beside the vocabulary. ids: what begins and ends a text. rules: how pieces become text.

    A model may have rows for further ids, such as a vocabulary padded to a multiple of 64; they stand for no text.
    """

    files: TokenizerFiles
    ids: TextIds
    rules: Rules

    @property
    def bos_id(self) -> int | None:
        return self.ids.bos_id

    @property
    def eos_id(self) -> int | None:
        return self.ids.eos_id

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """One more than the highest id of a token."""

    @property
    @abstractmethod
    def special_tokens(self) -> Collection[str]:
        """The texts of the tokens that are special."""

    @abstractmethod
    def id_of(self, token: str) -> int | None:
        """The id of the token spelled `token`, special or not; None if there is none."""

    @abstractmethod
    def piece(self, token_id: int) -> str | bytes:
        """The text or bytes of one id, as `incremental.Vocabulary` wants it. RequestError if it is not in the vocabulary."""

    @abstractmethod
    def _encode(self, text: str, continues: bool, allow_special: bool) -> list[int]:
        """The ids of valid Unicode, without a BOS and an EOS id."""

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

        add_bos, add_eos: whether to add the BOS id in front and the EOS id behind; None: as the tokenizer's files say.
        continues: `text` follows earlier ids, and so gets no dummy space in front.
        allow_special: special tokens spelled in `text` become their ids; never for untrusted text.
        Raises RequestError if `text` is no string or not valid Unicode, or a BOS or EOS id is wanted and there is none.
        """
        if not isinstance(text, str):
            raise RequestError(f"text is {text!r}, wanted a string")
        try:
            text.encode()
        except UnicodeEncodeError as bad:
            raise RequestError(f"text has a lone surrogate at character {bad.start}, wanted valid Unicode") from bad
        begin = _around("BOS", self.bos_id, self.ids.adds_bos if add_bos is None else add_bos)
        end = _around("EOS", self.eos_id, self.ids.adds_eos if add_eos is None else add_eos)
        return begin + self._encode(text, continues, allow_special) + end

    def decode(self, ids: Iterable[int]) -> str:
        """Decode `ids`, leaving out special tokens. RequestError names an id that is not in the vocabulary."""
        decoder = IncrementalDecoder(self)
        return "".join([decoder.push(token_id) for token_id in ids]) + decoder.flush()


def _around(which: str, token_id: int | None, wanted: bool) -> list[int]:
    """The id of BOS or EOS (`which`) as a list, empty unless it is wanted."""
    if wanted and token_id is None:
        raise RequestError(f"this tokenizer has no {which} token, wanted add_{which.lower()}=False")
    return [token_id] if wanted and token_id is not None else []
