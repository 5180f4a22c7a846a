"""What tokens stand for by each kind of decoder, as the library decodes them; unknown decoders are shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import decoders

from baize_engine.errors import CheckpointError
from baize_engine.text.fast_pieces import pieces_by
from baize_engine.text.incremental import IncrementalDecoder, Rules

REPLACE, BYTES, FUSE, STRIP = (
    decoders.Replace("\u2581", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
)
DECODERS = {
    "bytes": decoders.ByteLevel(),
    "one in a sequence": decoders.Sequence([decoders.ByteLevel()]),
    "llama": decoders.Sequence([REPLACE, BYTES, FUSE, STRIP]),
    "gemma": decoders.Sequence([REPLACE, BYTES, FUSE]),
    "without bytes": decoders.Sequence([REPLACE, FUSE, STRIP]),
    "metaspace": decoders.Metaspace(),
    "metaspace and bytes": decoders.Sequence([BYTES, decoders.Metaspace()]),
    "metaspace, never": decoders.Metaspace(prepend_scheme="never"),
}
TOKENS = [
    [],
    ["\u2581the", "\u2581cat"],
    ["\u2581", "\u2581the"],
    ["\u2581\u2581", "\u2581a\u2581b", "c\u2581"],
    [" ", "\u2581a"],
    [" a", "\u2581"],
    ["a\u2581b", "\u2581"],
    ["<0xE6>", "<0x97>", "<0xA5>", "<0x20>", "\u2581x"],
    ["<0x20>", "<0x20>", "a"],
    ["<0x0A>", "\u2581a"],
    ["<0xe6>", "<0xZZ>", "<0x+1>", "<0x1>"],
    ["\u0120the", "\u010a", "\u00e6", "\u0139", "\u00a5"],
    ["\u00e6", "x"],
    ["a b", "\u65e5"],
]


class Strings:
    """A vocabulary of the tokens themselves."""

    def __init__(self, decoder: dict[str, Any], tokens: list[str]) -> None:
        self.kind, self.tokens = pieces_by(decoder), tokens

    @property
    def rules(self) -> Rules:
        return self.kind.rules

    def piece(self, token_id: int) -> str | bytes:
        return self.kind.piece(self.tokens[token_id])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("tokens", TOKENS, ids=range(len(TOKENS)))
def test_texts_are_the_librarys(name: str, tokens: list[str]) -> None:
    decoder = DECODERS[name]
    vocabulary = Strings(json.loads(decoder.__getstate__()), tokens)
    stream = IncrementalDecoder(vocabulary)
    assert "".join(map(stream.push, range(len(tokens)))) + stream.flush() == decoder.decode(tokens)


def test_each_byte_has_its_character() -> None:
    kind = pieces_by({"type": "ByteLevel"})
    spelled = decoders.ByteLevel()
    for byte in range(128):
        found = [c for c in map(chr, range(0x21, 0x200)) if c.isprintable() and kind.piece(c) == bytes([byte])]
        assert len(found) == 1
        assert spelled.decode(found) == chr(byte)


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece"},
        {"type": "Sequence", "decoders": []},
        {"type": "Sequence", "decoders": [json.loads(each.__getstate__()) for each in (REPLACE, STRIP, FUSE)]},  # of each token
        {"type": "Sequence", "decoders": [json.loads(each.__getstate__()) for each in (FUSE, REPLACE, BYTES)]},
        {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"},
    ],
)  # fmt: skip
def test_other_decoders_are_refused(decoder: dict[str, Any] | None) -> None:
    with pytest.raises(CheckpointError, match=r"the decoder is .*, wanted ByteLevel, or Replace"):
        pieces_by(decoder)
