"""The journal of a run: what an earlier one left in it, torn lines, other runs, and one holder at a time."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from baize_engine.errors import OutputError
from baize_engine.recovery.journal import JOURNAL_NAME, Journal, is_unfinished, refuse_busy


@dataclass
class Note:
    sum: float


def note(item: Any) -> Note:
    return Note(**item)


def opened(folder: Path, run: str = "one", resume: bool = False) -> Journal[Note]:
    return Journal(folder, run, note, resume)


def test_what_was_noted_is_there_when_resumed(tmp_path: Path) -> None:
    assert not is_unfinished(tmp_path)
    journal = opened(tmp_path)
    assert journal.finished == {}
    journal.add("a", Note(1.5))
    journal.add("b", Note(-2.0))
    journal.close()
    assert is_unfinished(tmp_path)
    journal = opened(tmp_path, resume=True)
    assert journal.finished == {"a": Note(1.5), "b": Note(-2.0)}
    journal.remove()
    journal.close()
    assert not is_unfinished(tmp_path)
    refuse_busy(tmp_path)


def test_a_journal_that_goes_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baize_engine.recovery.journal.is_unfinished", lambda folder: True)
    with pytest.raises(OutputError, match="another recovery has just finished there"):
        refuse_busy(tmp_path)


@pytest.mark.parametrize("torn", [b'{"name": "b", "rec', b'{"name": "b", "record": {"summ": 1}}', b"\xff\n[]\n3"])
def test_a_torn_line_spoils_only_itself(tmp_path: Path, torn: bytes) -> None:
    journal = opened(tmp_path)
    journal.add("a", Note(1.0))
    journal.close()
    with (tmp_path / JOURNAL_NAME).open("ab") as file:
        file.write(torn)
    journal = opened(tmp_path, resume=True)
    assert journal.finished == {"a": Note(1.0)}
    journal.add("c", Note(3.0))
    journal.close()
    journal = opened(tmp_path, resume=True)
    assert journal.finished == {"a": Note(1.0), "c": Note(3.0)}
    journal.close()


@pytest.mark.parametrize("content", [b"", b'\n{"ru', b"\x00\x00\x00"])
def test_without_a_whole_first_line_nothing_is_finished(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JOURNAL_NAME).write_bytes(content)
    journal = opened(tmp_path, resume=True)
    assert journal.finished == {}
    journal.close()
    opened(tmp_path, resume=True).close()  # of this run now
    with pytest.raises(OutputError, match="other sources or options"):
        opened(tmp_path, "two", resume=True)


def test_another_run_is_refused_and_its_journal_untouched(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.add("a", Note(1.0))
    journal.close()
    before = (tmp_path / JOURNAL_NAME).read_bytes()
    with pytest.raises(OutputError, match=f"{tmp_path} holds an unfinished result of other sources") as refused:
        opened(tmp_path, "two", resume=True)
    assert refused.value.errno == errno.ENOTEMPTY
    assert (tmp_path / JOURNAL_NAME).read_bytes() == before
    opened(tmp_path, resume=True).close()  # and its lock is free


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for attempt in (lambda: opened(tmp_path), lambda: opened(tmp_path, resume=True), lambda: refuse_busy(tmp_path)):
        with pytest.raises(OutputError, match=f"{tmp_path}: another recovery is writing here") as refused:
            attempt()
        assert refused.value.errno == errno.EBUSY
    assert is_unfinished(tmp_path)
    journal.close()
    refuse_busy(tmp_path)
