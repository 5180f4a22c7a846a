"""Whatever a stranger's file says, a message stays short and printable."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from made_up import few, plain

from baize_engine.checkpoint.entry import MAX_NAME
from baize_engine.printable import MOST, brief, shown


@few
@given(st.text(max_size=2 * MOST), plain)
def test_messages_stay_short_and_printable(text: str, value: object) -> None:
    assert shown(text).isprintable()
    assert len(shown(text)) <= 10 * MOST
    assert len(brief(value)) <= 4 * MOST
    assert shown("model.norm.weight") == "model.norm.weight"
    assert MAX_NAME > MOST
