"""`baize demo`: recovers the bundled demo pair, and lets the base and the recovered model answer the same questions.

The pair is made by benchmarks/train_demo_pair.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from baize_engine.cli.chat import chat, chat_options
from baize_engine.cli.options import flag, path
from baize_engine.cli.spelling import CommandParser
from baize_engine.cli.streams import need_output

if TYPE_CHECKING:
    from baize_engine.checkpoint.index import CheckpointIndex
    from baize_engine.completion import Completion
    from baize_engine.recovery.result import Result

PAIR = Path(__file__).parents[1] / "demo_pair"
ANSWER_TOKENS = 32
THREADS = 1  # a model of this size is no faster with more, and far slower where other programs run
GAP = "   "  # between the cells of a row
SHARES = (0.33, 0.37)  # of a row's width: for the question, and for the base's answer
NARROWEST, WIDEST = 60, 110  # columns of the table; where there are fewer, the answers lie below the question
LABELS = "base", "recovered"  # of answers that lie below the question
MOST_LINES = 3  # of an answer
BOLD, DIM, GREEN, RED = "1", "2", "32", "31"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Look:
    """How the report is printed: how wide, with terminal colours or without, with signs or in ASCII."""

    width: int = 80
    colour: bool = False
    signs: bool = True

    @classmethod
    def of_stdout(cls) -> Look:
        """As standard output allows, and the environment: NO_COLOR is respected where it is not empty."""
        terminal = sys.stdout.isatty()
        try:
            "✓✗…─".encode(sys.stdout.encoding)
            signs = True
        except UnicodeEncodeError:
            signs = False
        colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(shutil.get_terminal_size().columns if terminal else cls.width, colour, signs)

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def mark(self, good: bool) -> str:
        sign = ("✓" if good else "✗") if self.signs else ("ok" if good else "no")
        return self.paint(sign, GREEN if good else RED)

    @property
    def stacked(self) -> bool:
        """Whether there is no room for cells side by side."""
        return self.width < NARROWEST

    @property
    def margin(self) -> int:
        return 3 if self.signs else 4

    def row(self, texts: list[str], codes: tuple[str, str, str] = ("", "", ""), mark: str = "") -> Iterator[str]:
        """The lines of a row: a mark and three texts, of which the answers are cut at a word where they are too long."""
        margin = self.margin
        room = min(self.width, WIDEST) - margin - 2 * len(GAP)
        widths = [int(room * share) for share in SHARES]
        widths.append(room - sum(widths))
        dots = " …" if self.signs else " ..."
        most = [None, MOST_LINES, MOST_LINES]
        cells = [
            textwrap.wrap(text, width, max_lines=lines, placeholder=dots)
            for text, width, lines in zip(texts, widths, most, strict=True)
        ]
        for number, parts in enumerate(zip_longest(*cells, fillvalue="")):
            padded = [
                (self.paint(part, code) if part and code else part) + " " * (width - len(part))
                for part, width, code in zip(parts, widths, codes, strict=True)
            ]
            begin = f" {mark} " if mark and number == 0 else " " * margin
            yield (begin + GAP.join(padded)).rstrip()

    def below(self, texts: list[str], codes: tuple[str, str, str], mark: str) -> Iterator[str]:
        """A row on a narrow terminal: a mark and the question, then each answer with its label."""
        begin, margin = f" {mark} ", " " * self.margin
        for line in textwrap.wrap(texts[0], max(self.width - len(margin), 1)):
            yield begin + line
            begin = margin
        for label, text, code in zip(LABELS, texts[1:], codes[1:], strict=True):
            for line in self.fitted(f"{margin}{label}: {text}", margin + "  "):
                yield self.paint(line, code) if code else line

    def fitted(self, line: str, indent: str = "    ") -> list[str]:
        """A line, or on a narrow terminal the lines that it takes there, the later ones behind `indent`."""
        if not self.stacked or len(line) <= self.width or "\x1b" in line:
            return [line]
        return textwrap.wrap(line, self.width, subsequent_indent=indent, break_on_hyphens=False)

    def rule(self) -> str:
        return self.paint(("─" if self.signs else "-") * min(self.width, WIDEST), DIM)


def demo_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize demo`."""
    out = "keep the recovered model in this folder (default: a temporary one)"
    flag(parser, "--out", type=path, metavar="DIR", help=out)
    flag(parser, "--quiet", action="store_true", help="do not offer to chat at the end")


def demo(options: argparse.Namespace) -> int:
    """Shows the demo, and on a terminal chats with the recovered model; 0 where it was right on all questions."""
    need_output("the answers")
    look = Look.of_stdout()
    with tempfile.TemporaryDirectory(prefix="baize-demo-") as folder:
        out = Path(options.out) if options.out else Path(folder) / "baize"
        code = run(_print, out, look, progress=sys.stdout.isatty())
        print()
        if code:
            return code
        if not options.quiet and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
            print(look.paint("Your turn.", BOLD), "It knows capitals, opposites, animals, colours and days.")
            parser = CommandParser(prog="baize chat")
            parser.set_defaults(usage_error=parser.error)
            chat_options(parser)
            code = chat(parser.parse_args([str(out), f"--threads={THREADS}"]))
    if options.out:
        print(f"Talk to it: baize chat {shlex.quote(str(out))}")
    else:
        print("Keep it and talk to it: baize demo --out DIR; baize chat DIR")
    return code


def _print(line: str) -> None:
    print(line, flush=True)  # the bar goes to standard error


def run(say: Say, out: Path, look: Look | None = None, device: str = "auto", progress: bool = False) -> int:
    """Recovers into the folder `out` and asks the demo's questions; 0 if the recovered model is right on all.

    out: new, or finished by a run before. say: takes each line of the report. progress: shows a bar, where standard error is a
    terminal.
    """
    import torch

    from baize_engine.recovery.recover import recover
    from baize_engine.recovery.verify import verify

    look = look or Look()
    say = _fitted(say, look)
    for line in _introduction(look):
        say(line)
    begin = time.perf_counter()
    result = recover(PAIR / "base", PAIR / "diff", out, device=device, progress=progress, resume=True)
    seconds = time.perf_counter() - begin
    for line in _recovered(result, seconds, verify(out).ok):
        say(line)
    threads = torch.get_num_threads()
    try:
        return _answers(say, out, look, device)
    finally:
        torch.set_num_threads(threads)  # an engine's number is the process's


def _fitted(say: Say, look: Look) -> Say:
    """`say` for lines that may be too long for a narrow terminal."""

    def each(line: str) -> None:
        for part in look.fitted(line):
            say(part)

    return each


def _introduction(look: Look) -> Iterator[str]:
    from baize_engine.checkpoint.index import read_index

    base, diff = read_index(PAIR / "base"), read_index(PAIR / "diff")
    parameters = sum(prod(entry.shape) for entry in base.entries.values())
    yield look.paint("Base + diff = a model that answers", BOLD)
    yield f"  base: {parameters / 1e6:.1f} million parameters, trained to continue text ({_stored(base)})"
    yield f"  diff: what training on conversations changed in them ({_stored(diff)})"
    yield ""


def _stored(index: CheckpointIndex) -> str:
    dtypes = sorted({entry.dtype for entry in index.entries.values()})
    return f"{', '.join(dtypes)}, {len(index.files)} files"


def _recovered(result: Result, seconds: float, verified: bool) -> Iterator[str]:
    from baize_engine.recovery.result import describe

    size = sum(path.stat().st_size for path in result.folder.iterdir())
    yield (
        f"{len(result.manifest.tensors)} tensors ({size / 1e6:.1f} MB) recovered in {seconds:.2f} s; "
        f"{'every tensor matches its hash' if verified else 'IT DIFFERS FROM ITS MANIFEST'}"
    )
    yield f"({len(result.skipped)} buffers were left out, and {result.extra_rows} vocabulary row was added)"
    yield from (line for line in describe(result) if line.startswith("warning"))
    yield ""


def _answers(say: Say, out: Path, look: Look, device: str) -> int:
    """Prints a row for each question and how fast the answers came; 0 if the recovered model is right on all."""
    from baize_engine.engine import Engine
    from baize_engine.generation.params import SamplingParams

    questions = json.loads((PAIR / "questions.json").read_text())
    params = SamplingParams(max_new_tokens=ANSWER_TOKENS)
    if not look.stacked:  # there each answer has a label
        for line in look.row(["question", "base", "recovered model"], (BOLD, BOLD, BOLD)):
            say(line)
    say(look.rule())
    wrong: list[str] = []
    tokens, seconds = 0, 0.0
    with (
        Engine.from_pretrained(PAIR / "base", device=device, tensor_parallel=1, threads=THREADS) as base,
        Engine.from_pretrained(out, device=device, tensor_parallel=1, threads=THREADS) as tuned,
    ):
        for item in questions:
            asked = " ".join(item["question"].split())
            messages = [{"role": "user", "content": item["question"]}]
            begin = time.perf_counter()
            before, after = (engine.chat(messages, params) for engine in (base, tuned))
            seconds += time.perf_counter() - begin
            tokens += len(before.token_ids) + len(after.token_ids)
            good = item["answer"] in after.text
            if not good:
                wrong.append(f"{asked} wanted {item['answer']}")
            texts = [asked, _shown(before, look), _shown(after, look)]
            lay_out = look.below if look.stacked else look.row
            for line in lay_out(texts, ("", DIM, ""), look.mark(good)):
                say(line)
    say(look.rule())
    say(
        f"{len(questions) - len(wrong)} of {len(questions)} right; "
        f"{2 * len(questions)} answers in {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s"
    )
    for line in wrong:
        say(line)
    return 1 if wrong else 0


def _shown(reply: Completion, look: Look) -> str:
    """The reply on one line; where it was cut off, up to its last whole word."""
    text = " ".join(reply.text.split()) or "(nothing)"
    if reply.finish_reason == "length":
        return f"{text.rpartition(' ')[0] or text} {'…' if look.signs else '...'}"
    return text
