"""`baize demo`: recovers the bundled demo pair, and lets the base and the result answer the same questions.

The pair is made by benchmarks/train_demo_pair.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from baize_engine.cli.chat import chat, chat_options
from baize_engine.cli.options import flag, path
from baize_engine.cli.spelling import CommandParser
from baize_engine.cli.streams import need_output

PAIR = Path(__file__).parents[1] / "demo_pair"
ANSWER_TOKENS = 24


def demo_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize demo`."""
    out = "keep the recovered model in this new folder (default: a temporary one)"
    flag(parser, "--out", type=path, metavar="DIR", help=out)
    flag(parser, "--quiet", action="store_true", help="do not offer to chat at the end")


def demo(options: argparse.Namespace) -> int:
    """Shows the demo, and on a terminal chats with the recovered model; 0 where it was right on all questions."""
    need_output("the answers")
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    with tempfile.TemporaryDirectory(prefix="baize-demo-") as folder:
        out = Path(options.out) if options.out else Path(folder) / "tuned"
        code = run(print, out, colour)
        if code == 0 and not options.quiet and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
            print("3. your turn (it knows capitals, opposites, animals, colours and days)")
            parser = CommandParser(prog="baize chat")
            parser.set_defaults(usage_error=parser.error)
            chat_options(parser)
            return chat(parser.parse_args([str(out)]))
    print(
        f"talk to it: baize chat {out}" if options.out else "keep and talk to it: baize demo --out DIR; baize chat DIR"
    )
    return code


def run(say: Callable[[str], None], out: Path, colour: bool = False, device: str = "auto") -> int:
    """Recovers into the new folder `out` and asks the demo's questions; 0 if the recovered model is right on all.

    say: takes each line of the report. colour: with terminal colours.
    """
    from baize_engine.checkpoint.config_file import read_config
    from baize_engine.engine import Engine
    from baize_engine.generation.params import SamplingParams
    from baize_engine.recovery.recover import recover
    from baize_engine.recovery.result import describe
    from baize_engine.recovery.verify import verify

    def paint(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colour else text

    begin = time.perf_counter()
    say(paint("1. base + diff -> recovered model", "1"))
    result = recover(PAIR / "base", PAIR / "diff", out, device=device, progress=False)
    seconds = time.perf_counter() - begin
    stored = sum(path.stat().st_size for path in out.iterdir())
    rows, more = (read_config(PAIR / part)["vocab_size"] for part in ("base", "diff"))
    say(
        f"   base: float16 .bin shards, {rows} rows; diff: float32 .bin shards, {more} rows; written: {stored / 1e6:.1f} MB"
    )
    for line in describe(result):
        say(f"   {line}")
    say(f"   {seconds:.2f} s; verified: {'as written' if verify(out).ok else 'DIFFERS FROM ITS MANIFEST'}")

    questions = json.loads((PAIR / "questions.json").read_text())
    say(paint("2. the same questions to both, greedily, in the chat format", "1"))
    params = SamplingParams(max_new_tokens=ANSWER_TOKENS)
    with (
        Engine.from_pretrained(PAIR / "base", device=device, tensor_parallel=1) as base,
        Engine.from_pretrained(out, device=device, tensor_parallel=1) as tuned,
    ):
        wide = max(len(item["question"]) for item in questions)
        say(f"   {'question':<{wide}}   {'base':<12}   recovered")
        right = 0
        for item in questions:
            messages = [{"role": "user", "content": item["question"]}]
            texts = (engine.chat(messages, params).text for engine in (base, tuned))
            before, after = (" ".join(text.split()) or "(nothing)" for text in texts)
            good = item["answer"] in after
            right += good
            mark = paint("right", "32") if good else paint(f"wrong, wanted {item['answer']}", "31")
            say(f"   {item['question']:<{wide}}   {before[:12]:<12}   {after}  {mark}")
    say(f"   {right} of {len(questions)} right, {time.perf_counter() - begin:.1f} s in all")
    return 0 if right == len(questions) else 1
