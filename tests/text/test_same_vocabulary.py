"""Ids that mean the same to two tokenizers, and the first that does not."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from baize_engine.text.same_vocabulary import first_difference


@dataclass
class Pieces:
    """A tokenizer of which only the pieces count."""

    pieces: list[str | bytes] = field(default_factory=list)

    def piece(self, token_id: int) -> str | bytes:
        return self.pieces[token_id]


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        (["", "▁a", "b"], ["", "▁a", "b"], None),
        (["", "▁a", b"b"], [b"", b" a", "b"], None),  # of two libraries
        (["x", "", "é"], ["x", "<s>", "é"], None),  # special to one of them
        (["", "a", "b"], ["", "b", "a"], 1),
        ([b"\xc3", b"\xa9"], [b"\xc3", "é"], 1),
        (["a", " b"], ["a", "b"], 1),
    ],
)
def test_first_difference(one: list, other: list, wanted: int | None) -> None:
    assert first_difference(Pieces(one), Pieces(other), len(one)) == wanted  # type: ignore[arg-type]
    assert first_difference(Pieces(other), Pieces(one), len(one)) == wanted  # type: ignore[arg-type]
