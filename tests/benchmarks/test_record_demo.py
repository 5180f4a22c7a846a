"""The demo's picture: that it shows what the demo prints, and how a recording becomes an animated SVG."""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from record_demo import COLUMNS, KEY, LINE, QUESTIONS, Session, drawn, paced, record
from terminal_svg import CELL, Event, picture, segments, svg
from terminal_svg import LINE as ROW

COMMITTED = Path(__file__).parents[2] / "docs" / "images" / "demo.svg"
SVG = "{http://www.w3.org/2000/svg}"


def still(image: str) -> list[str]:
    """The rows that an SVG shows where nothing moves: its texts but those of hidden groups, by their places."""
    rows: dict[int, str] = {}
    (window,) = ElementTree.fromstring(image).findall(f"{SVG}svg/{SVG}g")
    texts = [text for group in window if "x" not in group.attrib["class"].split() for text in group]
    for text in sorted(texts, key=lambda text: float(text.attrib["x"])):
        row, column = int(text.attrib["y"]) // ROW, round(float(text.attrib["x"]) / CELL)
        rows[row] = rows.get(row, "").ljust(column) + (text.text or "")
        assert float(text.attrib["textLength"]) == pytest.approx(len(text.text or "") * CELL)
    return [rows.get(row, "") for row in range(1 + max(rows))]


def timeless(rows: list[str]) -> list[str]:
    """Without times and speeds, and the bar, whose width depends on them."""
    rows = [re.sub(r"\|█+\|.*", "|bar|", row) for row in rows]
    return [re.sub(r"[\d.,]+(?= s\b| tokens/s)", "#", row) for row in rows]


def test_the_committed_picture_shows_what_the_demo_prints() -> None:
    rows = picture(segments(paced(record())))
    assert timeless(still(COMMITTED.read_text())) == timeless(rows)
    assert max(map(len, rows)) <= COLUMNS
    assert [row for row in rows if row.startswith("you> ")] == [f"you> {question}" for question in QUESTIONS]


def test_the_committed_picture_is_small_and_moves_by_css_alone() -> None:
    image = COMMITTED.read_text()
    root = ElementTree.fromstring(image)
    assert len(image.encode()) < 100_000
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {
        "svg", "title", "desc", "style", "rect", "circle", "text", "g",
    }  # fmt: skip
    assert not re.search(r"url\(|@import|@font-face|href|javascript", image)
    assert "prefers-reduced-motion" in image
    (seconds,) = map(float, re.findall(r"animation:([\d.]+)s step-end infinite", image))
    assert 10 < seconds < 20


def test_a_recording_becomes_a_picture() -> None:
    chunks = [
        ("printed", "\x1b[1mA & B\x1b[0m\r\n\r\n  <c>   d\r\nyou> "),
        ("typed", "h"),
        ("typed", "i"),
        ("replied", "\r\nHello you.\r\nyou> "),
    ]
    assert still(drawn(chunks)) == ["$ baize demo", "A & B", "", "  <c>   d", "you> hi", "Hello you.", "you>"]


def test_lines_come_one_after_the_other_and_keys_too() -> None:
    events = list(
        paced([("printed", "one\r\ntwo\r\nyou> "), ("typed", "h"), ("typed", "i"), ("replied", "\r\nHello you.\r\n")])
    )
    assert [text for _, text in events[-8:]] == ["one\r\n", "two\r\n", "you> ", "h", "i", "\r\nHello", " you.", "\r\n"]
    times = {text: at for at, text in events}
    assert times["two\r\n"] - times["one\r\n"] == pytest.approx(LINE)
    assert times["i"] - times["h"] == pytest.approx(KEY)
    assert [at for at, _ in events] == sorted(at for at, _ in events)


@pytest.mark.parametrize(
    ("events", "wanted"),
    [
        ([(0.0, "ab"), (1.0, "c")], [("ab", 0.0, None), ("c", 1.0, None)]),
        ([(0.0, "0%"), (1.0, "\r9%")], [("0%", 0.0, 1.0), ("9%", 1.0, None)]),
        ([(0.0, "ab\b"), (2.0, "\x1b[K")], [("ab", 0.0, 2.0), ("a", 2.0, None)]),
        ([(0.0, "a\x1b[?2004h"), (1.0, "\r\nb")], [("a", 0.0, None), ("b", 1.0, None)]),
    ],
)  # fmt: skip
def test_what_is_printed_over_goes(events: list[Event], wanted: list[tuple[str, float, float | None]]) -> None:
    found = [("".join(text for text, _ in part.cells), part.start, part.end) for part in segments(events)]
    assert found == wanted


def test_each_text_appears_and_goes_at_its_time() -> None:
    image = svg([(0.0, "0%"), (1.0, "\r9%"), (2.5, "\nend")], 20, 5, 10.0, "t", "s")
    frames = dict(re.findall(r"@keyframes (k\d+)\{((?:[^{}]+\{[^}]*\})+)\}", image))
    groups = {name: text for name, text in re.findall(r'<g class="(k\d+)[ x]*"><text[^>]*>([^<]*)', image)}
    assert {groups[name]: re.findall(r"([\d.]+)%\{visibility:(\w+)", found) for name, found in frames.items()} == {
        "0%": [("0", "hidden"), ("0.00", "visible"), ("10.00", "hidden")],
        "9%": [("0", "hidden"), ("10.00", "visible")],
        "end": [("0", "hidden"), ("25.00", "visible")],
    }
    assert re.search(r'class="k\d+ x"><text[^>]*>0%<', image)


def test_the_window_scrolls_to_the_last_row() -> None:
    image = svg([(0.0, "a\r\n"), (1.0, "b\r\n"), (2.0, "c\r\n"), (3.0, "d")], 20, 2, 10.0, "t", "s")
    moves = re.findall(r"([\d.]+)%\{transform:translateY\((-?\d+)px\)\}", image)
    assert moves == [("0.00", "0"), ("20.00", str(-ROW)), ("30.00", str(-2 * ROW))]
    assert f'transform="translate(0 {-2 * ROW})"' in image
    assert still(image) == ["a", "b", "c", "d"]


def test_a_demo_that_ends_early_is_told_with_what_it_showed(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Session, text: str) -> None:
        raise OSError("the terminal is gone")

    monkeypatch.setenv("PYTHONHOME", "/nonexistent")  # no Python starts
    monkeypatch.setattr(Session, "type", gone)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(EOFError, match=r"did not show 'you> ' but .*Fatal Python error"):
        record()
    assert len(os.listdir("/proc/self/fd")) == before
