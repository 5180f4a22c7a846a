"""What a page says in numbers, and which of them nobody has accounted for."""

from __future__ import annotations

import re

from shapes import PRESETS

NUMBER = r"\d[\d,]*(?:\.\d+)?"
UNIT = (
    r"tok/s|tokens a second|[KMGT]i?B(?:/s)?|G(?:MAC|FLOP)/s|TFLOP/s|ms|[µu]s|s|seconds?|minutes?|hours?|nats"
    r"|%|×|x|times|cases|runs|trials|kills|tests|programs|parameters"
)
MEASURED = re.compile(rf"(?<![\w.])\**{NUMBER}\**(?: to \**{NUMBER}\**)?[ \u00a0]?(?:{UNIT})(?![\w/])")
DECIMAL = re.compile(r"(?<![\w.-])\d[\d,]*\.\d+(?![\w.]*\d)")  # no version of three numbers
PROGRAMS = r"Python|PyTorch|torch|Triton|transformers|Slurm|capability"
# what no page need account for: versions of programs, and the presets' sizes
KNOWN = re.compile(
    rf"\b(?:{PROGRAMS}) \d+(?:\.\d+)+(?!\w| ?(?:{UNIT})(?!\w))"
    rf"|(?<![\w.])(?:{'|'.join(f'{shape.parameters / 1e9:.2f}B' for shape in PRESETS.values())})\b"
)
CELL = re.compile(rf"(?<=\|) *\**[≈~<]?{NUMBER}\** *(?=\|)")
FIGURE = re.compile("|".join(each.pattern for each in (MEASURED, CELL, DECIMAL)))


def visible(markdown: str) -> str:
    """A page without fenced code and comments, its white space collapsed."""
    text = re.sub(r"^ *(`{3,}|~{3,}).*?^ *\1 *$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    return " ".join(re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).split())


def pattern(phrase: str) -> re.Pattern[str]:
    """What finds a phrase in a visible text: "2 %" is not in "12 %", nor "1.2" in "1.25"."""
    words = " ".join(phrase.split())
    begin = r"(?<![\d.,])" if words[0].isdigit() else ""
    end = r"(?![\d]|[.,]\d)" if words[-1].isdigit() else ""
    return re.compile(begin + re.escape(words) + end)


def unaccounted(text: str, accounted: list[str]) -> list[str]:
    """The figures of a visible text that are in none of the phrases `accounted`, with some words around each.

    A figure is a number with a unit or a decimal point, or alone in a table's cell.
    """
    for phrase in sorted(accounted, key=len, reverse=True):
        text = pattern(phrase).sub(" § ", text)
    text = re.sub(r"`[^`]*`", "`code`", text)
    text = KNOWN.sub("known", text)
    return [text[max(0, match.start() - 40) : match.end() + 20] for match in FIGURE.finditer(text)]
