"""Messages that are edited, recalled and pasted at a terminal, and the history that is kept of them."""

from __future__ import annotations

import ctypes.util
import json
import os
import readline
import stat
from pathlib import Path

import pytest
from chats import Terminal, command, conversation
from commands import MODULE

from baize_engine.cli import line_editing

UP, LEFT = b"\x1b[A", b"\x1b[D"


PASTE = b"\x1b[200~%b\x1b[201~"  # as a terminal sends it that was told to mark what is pasted


def test_lines_are_edited_and_recalled_also_by_another_chat(folder: Path, tmp_path: Path) -> None:
    """The left arrow was `^[[D` in the message before."""
    replies = conversation(folder, "the cat", "the cats")
    terminal = Terminal(command(folder), XDG_STATE_HOME=str(tmp_path))
    terminal.say(b"e cat" + LEFT * 5 + b"th\n")
    terminal.say(UP + b"s\n")
    terminal.say(b"/exit\n")
    assert terminal.end() == 0
    for reply in replies:
        assert reply.encode().replace(b"\n", b"\r\n") in terminal.everything
    noted = tmp_path / "baize" / "chat_history"
    assert [json.loads(line) for line in noted.read_text().splitlines()] == ["the cat", "the cats", "/exit"]
    assert stat.S_IMODE(noted.stat().st_mode) == 0o600
    terminal = Terminal(command(folder), XDG_STATE_HOME=str(tmp_path))
    terminal.say(UP * 3 + b"\n")
    terminal.say(b"\x04")
    assert terminal.end() == 0
    assert replies[0].encode().replace(b"\n", b"\r\n") in terminal.everything
    before = noted.read_bytes()
    terminal = Terminal(command(folder, "--nohistory"), XDG_STATE_HOME=str(tmp_path))
    terminal.say(UP + b"a\n")
    terminal.say(b"\x04")
    assert terminal.end() == 0
    assert b"exit" not in terminal.everything.rpartition(b"leaves.")[2]
    assert noted.read_bytes() == before


LIBEDIT = ctypes.util.find_library("edit")


EDITORS = {
    "readline": MODULE,
    "libedit": MODULE,
    "none": ["-c", "import sys; sys.modules['readline'] = None; from baize_engine.cli import main; sys.exit(main())"],
}


@pytest.mark.parametrize("editor", EDITORS)
def test_pasted_lines_are_one_message(folder: Path, tmp_path: Path, editor: str) -> None:
    """By GNU readline, by libedit in its place (as macOS's Python has it), and without either."""
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    if editor == "libedit":
        if LIBEDIT is None or "GNU" not in (readline.__doc__ or ""):
            pytest.skip("no libedit to put in the place of GNU readline")
        environment["LD_PRELOAD"] = LIBEDIT
    replies = conversation(folder, "the\ncat\n\nsat", "a b\nc", "dog")
    terminal = Terminal([*EDITORS[editor], *command(folder)[len(MODULE) :]], editor == "libedit", **environment)
    terminal.say(PASTE % b"the\rcat\r\rsat" + b"\n")
    terminal.say(b"a " + PASTE % b"b\rc" + b"\n")
    terminal.say(b"dog\n")
    terminal.say(b"/exit\n")
    assert terminal.end() == 0
    shown = terminal.everything
    for reply in replies:
        before, found, shown = shown.partition(reply.encode().replace(b"\n", b"\r\n"))
        assert found, before
    assert shown.rpartition(b"\x1b[?2004")[2].startswith(b"l")  # and the terminal is as it was


@pytest.mark.parametrize("trouble", ["file in the way", "folder in the way", "closed", "pipe"])
def test_a_history_that_cannot_be_kept_is_told_once_and_costs_nothing(
    folder: Path,
    tmp_path: Path,
    trouble: str,
) -> None:
    (tmp_path / "baize").mkdir()
    if trouble == "file in the way":
        (tmp_path / "baize").rmdir()
        (tmp_path / "baize").write_bytes(b"")
    elif trouble == "folder in the way":
        (tmp_path / "baize" / "chat_history").mkdir()
    elif trouble == "pipe":
        os.mkfifo(tmp_path / "baize" / "chat_history")
    else:
        (tmp_path / "baize" / "chat_history").symlink_to("/proc/self/nowhere/at all")
    replies = conversation(folder, "dog", "the cat")
    terminal = Terminal(command(folder), XDG_STATE_HOME=str(tmp_path))
    terminal.say(b"dog\n")
    terminal.say(b"the cat\n")
    terminal.say(b"\x04")
    assert terminal.end() == 0
    for reply in replies:
        assert reply.encode().replace(b"\n", b"\r\n") in terminal.everything
    assert terminal.everything.count(b"messages are not saved for later chats") == 1


def test_a_bad_byte_that_is_typed_costs_its_message(folder: Path, tmp_path: Path) -> None:
    (reply,) = conversation(folder, "dog")
    terminal = Terminal(command(folder), XDG_STATE_HOME=str(tmp_path))
    terminal.say(b"the \xff cat\n")
    terminal.say(b"dog\n")
    terminal.say(b"\x04")
    assert terminal.end() == 0
    assert b"not UTF-8" in terminal.everything
    assert reply.encode().replace(b"\n", b"\r\n") in terminal.everything


def test_the_history_is_bounded_and_what_is_not_ours_in_it_is_passed_over(tmp_path: Path) -> None:
    history = line_editing.History(tmp_path / "state" / "chat_history")
    assert history.entries() == []
    history.note("two\nlines")
    history.path.chmod(0o644)
    history.note("é")
    assert stat.S_IMODE(history.path.stat().st_mode) == 0o600
    with history.path.open("ab") as file:
        file.write(b'[1]\n{\n"\\ud800"\n"a\\u0000"\n\xff\n' + b"[" * 100_000 + b'\n"torn')
    assert history.entries() == ["two\nlines", "é"]
    history.path.write_text("".join(f'"{i}"\n' for i in range(2 * line_editing.MOST_ENTRIES + 1)))
    latest = [str(i) for i in range(line_editing.MOST_ENTRIES + 1, 2 * line_editing.MOST_ENTRIES + 1)]
    assert history.entries() == latest == history.entries()
    assert len(history.path.read_text().splitlines()) == line_editing.MOST_ENTRIES
    assert stat.S_IMODE(history.path.stat().st_mode) == 0o600
    history.path.write_bytes(b'"' + b"a" * 2 * line_editing.MOST_BYTES + b'"\n"b"\n')
    assert history.entries() == ["b"]
    assert history.path.read_bytes() == b'"b"\n'
