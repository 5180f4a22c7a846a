"""Progress: drawn on a terminal and nowhere else, and right when several threads add to it."""

from __future__ import annotations

import io
import re
import threading

import pytest

from baize_engine.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stderr", [Terminal(), io.StringIO(), None], ids=["terminal", "file", "closed"])
@pytest.mark.parametrize("shown", [True, False])
def test_nothing_is_drawn_without_a_terminal(
    shown: bool, stderr: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stderr)
    before = "" if stderr is None else stderr.getvalue()
    with Progress(3, "prompt", shown, "generate", done=1) as bar:
        bar.add(1, tokens=5)
        bar.add(1, tokens=4)
    drawn = "" if stderr is None else stderr.getvalue()[len(before) :]
    if shown and isinstance(stderr, Terminal):
        assert "generate" in drawn
        assert "3/3" in drawn
        assert "9 tokens, " in drawn
        assert "tok/s" in drawn
    else:
        assert drawn == ""


@pytest.mark.parametrize(
    ("note", "behind"), [("70% accepted", ", 70% accepted]"), ("", "]")], ids=["speculation", "none"]
)
def test_a_note_stands_behind_the_tokens(note: str, behind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stderr := Terminal())
    with Progress(1, "prompt", True, note=lambda: note) as bar:
        bar.add(1, tokens=5)
    drawn = stderr.getvalue().rstrip()
    assert re.search(r"5 tokens, [\d.]+ tok/s(.*)$", drawn)[1] == behind  # type: ignore[index]


def test_threads_add_to_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    with Progress(4000, "B", True) as bar:
        threads = [threading.Thread(target=lambda: [bar.add(1) for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "4.00k/4.00k" in stderr.getvalue()
    assert "tok/s" not in stderr.getvalue()
