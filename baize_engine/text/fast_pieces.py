"""What the tokens of a tokenizer.json stand for, by its decoder. Knows token strings; no ids and no library.

Two families of decoders are known, which all published LLaMAs use: ByteLevel, whose tokens spell bytes as GPT-2 does, and
sentencepiece's, whose tokens have "▁" for a space and "<0x0A>" for a byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from baize_engine.errors import CheckpointError
from baize_engine.printable import brief
from baize_engine.text.incremental import LOSSY, SPACE, FirstSpaces, Rules

_REPLACE = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
# in these orders, as the library's own converters write them
_SENTENCEPIECE = ("Replace", "ByteFallback", "Fuse", "Strip")
_METASPACE = ("ByteFallback", "Metaspace", "Fuse")
_BYTE = re.compile("<0x([0-9A-Fa-f+][0-9A-Fa-f])>")  # the library takes a plus for a digit
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


class ByteLevel:
    """Tokens that spell bytes, one character a byte."""

    rules = Rules(errors=LOSSY)

    def piece(self, token: str) -> str | bytes:
        table = _byte_of()
        if all(character in table for character in token):
            return bytes([table[character] for character in token])
        return token.encode()  # an added token


@dataclass(frozen=True)
class Spaced:
    """Tokens with SPACE for a space. has_bytes: some are bytes, spelled <0x0A>."""

    rules: Rules
    has_bytes: bool

    def piece(self, token: str) -> str | bytes:
        if self.has_bytes and (found := _BYTE.fullmatch(token)):
            byte = bytes([int(found[1], 16)])
            if byte != b" ":
                return byte
            token = " "
        # "Strip" takes any space off the front of a text, "Metaspace" only those that encoding wrote
        return token if self.rules.first_spaces is FirstSpaces.ALL else token.replace(" ", SPACE)


def pieces_by(decoder: Mapping[str, Any] | None) -> ByteLevel | Spaced:
    """The meaning of tokens by the "decoder" of a tokenizer.json. CheckpointError shows one that is not known."""
    steps = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevel()
    by_kind = {step.get("type"): step for step in steps}
    has_bytes = "ByteFallback" in kinds
    # "Strip" is of the whole text behind "Fuse" only
    of_text = "Fuse" in kinds if "Strip" in kinds else True
    if kinds == [kind for kind in _SENTENCEPIECE if kind in kinds] and by_kind.get("Replace") == _REPLACE and of_text:
        if "Strip" not in kinds:
            return Spaced(Rules(FirstSpaces.KEPT), has_bytes)
        if by_kind["Strip"] == _STRIP:
            return Spaced(Rules(FirstSpaces.ONE), has_bytes)
    meta = by_kind.get("Metaspace", {})
    if kinds == [kind for kind in _METASPACE if kind in kinds] and meta.get("replacement") == SPACE:
        never = meta.get("prepend_scheme") == "never"
        return Spaced(Rules(FirstSpaces.KEPT if never else FirstSpaces.ALL), has_bytes)
    raise CheckpointError(
        f"the decoder is {brief(decoder)}, wanted ByteLevel, or Replace, ByteFallback, Fuse and Strip as sentencepiece "
        "decodes, or Metaspace"
    )


@cache
def _byte_of() -> dict[str, int]:
    """GPT-2's table of characters for bytes: printable ones stand for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
