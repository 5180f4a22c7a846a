"""A recording of a terminal as an animated SVG: a window in which text appears as it was printed, over and over.

CSS keyframes alone move it: no script, no font of its own. Where animations are off, or unknown, it is the last picture.
Understands what command lines print: line ends, tabs aside, carriage returns, backspaces, erasing to the end of the line, and
bold, dim and coloured text. Other escape sequences are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

Event = tuple[float, str]  # seconds since the beginning, and what is printed then
Cell = tuple[str, str]  # a character, and its style: a class of STYLES, or ""

CELL, LINE, SIZE = 8.4, 18, 14  # pixels: a column, a row, the font
PAD, BAR = 16, 34  # pixels: around the text, and the window's bar above it
FONT = "ui-monospace,SFMono-Regular,'SF Mono',Menlo,Consolas,'Liberation Mono','DejaVu Sans Mono',monospace"
STYLES = {"1": "b", "2": "d", "31": "r", "32": "g"}  # select graphic rendition -> class
COLOURS = ".b{font-weight:700;fill:#fff}.d{fill:#93a1b5}.r{fill:#ff8f8f}.g{fill:#7ee094;font-weight:700}"
ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


@dataclass
class Segment:
    """Characters of one row that appear together, and go together or stay. end: None for those of the last picture."""

    row: int
    column: int
    cells: list[Cell]
    start: float
    end: float | None = None


def segments(events: Iterable[Event]) -> list[Segment]:
    """What a terminal of endless height shows, and when."""
    rows: list[list[Cell]] = [[]]
    shown: list[list[Segment]] = [[]]  # those of each row that have no end yet
    made: list[Segment] = []
    row, column, style = 0, 0, ""
    for at, text in events:
        touched = set()
        place = 0
        while place < len(text):
            if found := ESCAPE.match(text, place):
                place = found.end()
                if found[2] == "m":
                    style = STYLES.get(found[1], "")
                elif found[2] == "K" and found[1] in ("", "0"):
                    del rows[row][column:]
                    touched.add(row)
                continue
            character = text[place]
            place += 1
            if character == "\n":
                row += 1
                if row == len(rows):
                    rows.append([])
                    shown.append([])
            elif character == "\r":
                column = 0
            elif character == "\b":
                column = max(0, column - 1)
            elif character.isprintable():
                rows[row] += [(" ", "")] * (column - len(rows[row]))
                rows[row][column : column + 1] = [(character, style)]
                column += 1
                touched.add(row)
        for changed in sorted(touched):
            _show(changed, rows[changed], shown[changed], made, at)
    return made


def _show(row: int, cells: list[Cell], shown: list[Segment], made: list[Segment], at: float) -> None:
    """Adds what is new in a row, whose old segments end unless the row just got longer."""
    before = [cell for segment in shown for cell in segment.cells]
    if before != cells[: len(before)]:
        for segment in shown:
            segment.end = at
        shown.clear()
        before = []
    if len(cells) > len(before):
        shown.append(Segment(row, len(before), cells[len(before) :], at))
        made.append(shown[-1])


def picture(found: Iterable[Segment]) -> list[str]:
    """The rows of the last picture."""
    last = [segment for segment in found if segment.end is None]
    rows = [""] * (1 + max((segment.row for segment in last), default=0))
    for segment in sorted(last, key=lambda segment: segment.column):
        rows[segment.row] = rows[segment.row].ljust(segment.column) + "".join(
            character for character, _ in segment.cells
        )
    return [row.rstrip() for row in rows]


def svg(events: list[Event], columns: int, rows: int, seconds: float, title: str, summary: str) -> str:
    """The recording in a window of so many columns and rows, which begins anew after `seconds`.

    summary: for those who cannot see it.
    """
    found = [segment for segment in segments(events) if segment.end is None or segment.end > segment.start]
    height, width = BAR + LINE * rows + PAD, round(columns * CELL + 2 * PAD)
    scrolls = _scrolls(found, rows)
    moments: dict[tuple[float, float | None], str] = {}
    texts = [text for segment in found for text in _texts(segment, _named(moments, segment))]
    frames = [_frames(name, start, end, seconds) for (start, end), name in moments.items()]
    style = (
        f"text{{font:{SIZE}px {FONT};fill:#dbe2ee;white-space:pre}}{COLOURS}.x{{visibility:hidden}}"
        f"g{{animation:{seconds:g}s step-end infinite}}{''.join(frames)}{_scroll_frames(scrolls, seconds)}"
        "@media (prefers-reduced-motion:reduce){g{animation:none!important}}"
    )
    dots = "".join(
        f'<circle cx="{PAD + 6 + 20 * n}" cy="17" r="6" fill="{fill}"/>'
        for n, fill in enumerate(["#ff5f57", "#febc2e", "#28c840"])
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-labelledby="t s">',
        f'<title id="t">{escape(title)}</title><desc id="s">{escape(summary)}</desc><style>{style}</style>',
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10" fill="#171b24" stroke="#465063"/>{dots}',
        f'<text x="{width / 2:g}" y="22" text-anchor="middle" class="d">{escape(title)}</text>',
        f'<svg x="{PAD}" y="{BAR}" width="{width - PAD}" height="{LINE * rows}">',
        f'<g class="s" transform="translate(0 {-LINE * scrolls[-1][1]})">',
        *_grouped(texts),
        "</g></svg></svg>",
    ]
    return "\n".join(lines) + "\n"


def _scrolls(found: list[Segment], rows: int) -> list[tuple[float, int]]:
    """When how many rows have left the window."""
    scrolls = [(0.0, 0)]
    for segment in sorted(found, key=lambda segment: segment.start):
        if segment.row - rows + 1 > scrolls[-1][1]:
            scrolls.append((segment.start, segment.row - rows + 1))
    return scrolls


def _scroll_frames(scrolls: list[tuple[float, int]], seconds: float) -> str:
    moves = "".join(f"{100 * at / seconds:.2f}%{{transform:translateY({-LINE * gone}px)}}" for at, gone in scrolls)
    return f".s{{animation-name:s!important}}@keyframes s{{{moves}}}"


def _named(moments: dict[tuple[float, float | None], str], segment: Segment) -> str:
    return moments.setdefault((segment.start, segment.end), f"k{len(moments)}")


def _frames(name: str, start: float, end: float | None, seconds: float) -> str:
    """The keyframes of what appears at `start` and goes at `end`."""
    shown = f"{100 * start / seconds:.2f}%{{visibility:visible}}"
    gone = "" if end is None else f"{100 * end / seconds:.2f}%{{visibility:hidden}}"
    return f".{name}{{animation-name:{name}!important}}@keyframes {name}{{0%{{visibility:hidden}}{shown}{gone}}}"


def _texts(segment: Segment, name: str) -> Iterator[tuple[str, str]]:
    """A class and a text element for each run of one style without wide gaps, which fonts of other widths would shift."""
    line = "".join(character for character, _ in segment.cells)
    for word in re.finditer(r"\S+(?: \S+)*", line):
        begin = word.start()
        while begin < word.end():
            end = begin + 1
            while end < word.end() and segment.cells[end][1] == segment.cells[begin][1]:
                end += 1
            text, style = line[begin:end], segment.cells[begin][1]
            left = begin + len(text) - len(text.lstrip())
            text = text.strip()
            if text:
                x, y = (segment.column + left) * CELL, segment.row * LINE + SIZE
                kind = f' class="{style}"' if style else ""
                element = f'<text x="{x:g}" y="{y}" textLength="{len(text) * CELL:g}"{kind}>{escape(text, quote=False)}</text>'
                yield name if segment.end is None else f"{name} x", element
            begin = end


def _grouped(texts: list[tuple[str, str]]) -> Iterator[str]:
    """A group for each class, in the order in which they come first."""
    for name in dict.fromkeys(name for name, _ in texts):
        yield f'<g class="{name}">{"".join(text for found, text in texts if found == name)}</g>'
