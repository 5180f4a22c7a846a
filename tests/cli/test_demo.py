"""`baize demo`: what it shows, on a terminal and elsewhere, how wide, and how many answers were right."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from chats import Terminal
from commands import MODULE
from record_demo import Session

from baize_engine import verify
from baize_engine.cli import demo as module
from baize_engine.cli import main
from baize_engine.cli.demo import PAIR, Look, run
from baize_engine.completion import Completion

QUESTIONS = json.loads((PAIR / "questions.json").read_text())
SUMMARY = f"{len(QUESTIONS)} of {len(QUESTIONS)} right"
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"


def joined(lines: list[str]) -> str:
    """A column of the table as one text again."""
    return " ".join(line for line in lines if line)


@pytest.mark.parametrize("width", [30, 40, 59, 60, 80, 300])
def test_every_answer_is_shown_in_rows_that_fit(tmp_path: Path, width: int) -> None:
    lines: list[str] = []
    assert run(lines.append, tmp_path / "tuned", Look(width), device="cpu") == 0
    if width < 60:  # answers below the questions, each with its label
        assert max(map(len, lines)) <= width
        assert sum(line.startswith("   base: ") for line in lines) == len(QUESTIONS)
        assert sum(line.startswith("   recovered: ") for line in lines) == len(QUESTIONS)
    assert any(SUMMARY in line for line in lines)
    first, last = (number for number, line in enumerate(lines) if set(line) == {"─"})
    table = lines[first + 1 : last]
    assert max(map(len, table)) <= width
    assert sum(line.startswith(" ✓ ") for line in table) == len(QUESTIONS)
    assert not any("\x1b" in line for line in lines)
    assert "every tensor matches its hash" in " ".join(" ".join(lines).split())


def test_a_wrong_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tmp_path / "pair"
    pair.mkdir()
    for part in ("base", "diff"):
        (pair / part).symlink_to(PAIR / part)
    (pair / "questions.json").write_text(json.dumps([*QUESTIONS[:1], {"question": "Who are you?", "answer": "Nobody"}]))
    monkeypatch.setattr(module, "PAIR", pair)
    lines: list[str] = []
    assert run(lines.append, tmp_path / "tuned", Look(signs=False), device="cpu") == 1
    assert [line[:4] for line in lines if line.startswith((" ok ", " no "))] == [" ok ", " no "]
    assert any("1 of 2 right" in line for line in lines)
    assert lines[-1] == "Who are you? wanted Nobody"


def test_a_row_wraps_the_question_and_cuts_long_answers_at_a_word() -> None:
    rows = list(Look(80).row([LONG, LONG, "short"], mark="✓"))
    assert max(map(len, rows)) <= 80
    question, cut, short = (
        joined([row[begin:end].strip() for row in rows]) for begin, end in ((3, 29), (29, 58), (58, 80))
    )
    assert (question, short) == (LONG, "short")
    assert cut.endswith(" …")
    assert LONG.startswith(cut.removesuffix("…"))


def test_an_answer_that_was_cut_off_ends_with_a_whole_word() -> None:
    cut = Completion(0, 0, [], "It goes on and\non wi", "length")
    whole = Completion(0, 0, [], "It ends.", "stop")
    assert module._shown(cut, Look()) == "It goes on and on …"
    assert module._shown(cut, Look(signs=False)) == "It goes on and on ..."
    assert module._shown(whole, Look()) == "It ends."


class Screen(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "encoding", "wanted"),
    [
        ({}, "utf-8", (True, True)),
        ({"NO_COLOR": "1"}, "utf-8", (False, True)),
        ({"NO_COLOR": ""}, "utf-8", (True, True)),
        ({"TERM": "dumb"}, "utf-8", (False, True)),
        ({}, "ascii", (True, False)),
    ],
)
def test_colours_and_signs_follow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], encoding: str, wanted: tuple[bool, bool]
) -> None:
    for name, value in {"TERM": "xterm", "COLUMNS": "93", **environment}.items():
        monkeypatch.setenv(name, value)
    if "NO_COLOR" not in environment:
        monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", Screen(io.BytesIO(), encoding=encoding))
    assert Look.of_stdout() == Look(93, *wanted)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert Look.of_stdout() == Look(80, False, wanted[1])


def test_elsewhere_than_on_a_terminal_it_is_plain_and_keeps_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kept"
    assert main(["demo", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert SUMMARY in shown.out
    assert "\x1b" not in shown.out + shown.err
    assert shown.err == ""
    assert shown.out.splitlines()[-1] == f"Talk to it: baize chat {out}"
    assert verify(out).ok
    assert main(["demo", "--out", str(out)]) == 0  # again, with what is there
    assert SUMMARY in capsys.readouterr().out


@pytest.mark.parametrize("plain", [False, True])
def test_on_a_terminal_it_shows_a_bar_and_chats(tmp_path: Path, plain: bool) -> None:
    session = Session(tmp_path, NO_COLOR="1" if plain else "")
    shown = session.until("you> ")
    session.type("What is the capital of Japan?\r")
    assert "The capital of Japan is Tokyo." in session.until("you> ")
    session.type("\x04")
    assert "Keep it and talk to it" in session.until("baize demo --out DIR; baize chat DIR\r\n")
    assert session.close() == 0
    assert re.search(r"\rrecover: +100%\|█+\|", shown)
    assert SUMMARY in shown
    assert ("\x1b[1m" in shown) is not plain


def test_quiet_does_not_chat(tmp_path: Path) -> None:
    terminal = Terminal([*MODULE, "demo", "--quiet", "--out", str(tmp_path / "kept")])
    terminal.read_until(b"Talk to it")
    assert terminal.end() == 0
    assert b"you> " not in terminal.everything
