"""The demo: recovers the small trained pair that comes with the package and lets base and result answer side by side.

Says what it does through a callback; the command line prints. The pair is made by benchmarks/train_demo_pair.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from baize_engine.engine import Engine
from baize_engine.generation.params import SamplingParams
from baize_engine.recovery.recover import recover
from baize_engine.recovery.result import describe
from baize_engine.recovery.verify import verify

PAIR = Path(__file__).parents[1] / "demo_pair"
ANSWER_TOKENS = 24


def run(say: Callable[[str], None], out: Path, colour: bool = False, device: str = "auto") -> int:
    """Recovers into the new folder `out` and asks the demo's questions; 0 if the recovered model is right on all."""

    def paint(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colour else text

    begin = time.perf_counter()
    say(paint("1. base + diff -> recovered model", "1"))
    result = recover(PAIR / "base", PAIR / "diff", out, device=device, progress=False)
    seconds = time.perf_counter() - begin
    stored = sum(path.stat().st_size for path in out.iterdir())
    say(f"   base: float16 .bin shards, 512 rows; diff: float32 .bin shards, 513 rows; written: {stored / 1e6:.1f} MB")
    for line in describe(result):
        say(f"   {line}")
    say(f"   {seconds:.2f} s; verified: {'as written' if verify(out).ok else 'DIFFERS FROM ITS MANIFEST'}")

    questions = json.loads((PAIR / "questions.json").read_text())
    say(paint("2. the same questions to both, greedily, in the chat format", "1"))
    params = SamplingParams(max_new_tokens=ANSWER_TOKENS)
    with (
        Engine.from_pretrained(PAIR / "base", device=device) as base,
        Engine.from_pretrained(out, device=device) as tuned,
    ):
        wide = max(len(item["question"]) for item in questions)
        say(f"   {'question':<{wide}}   {'base':<12}   recovered")
        right = 0
        for item in questions:
            messages = [{"role": "user", "content": item["question"]}]
            before, after = (_one_line(engine.chat(messages, params).text) for engine in (base, tuned))
            good = item["answer"] in after
            right += good
            mark = paint("right", "32") if good else paint(f"wrong, wanted {item['answer']}", "31")
            say(f"   {item['question']:<{wide}}   {before[:12]:<12}   {after}  {mark}")
    say(f"   {right} of {len(questions)} right, {time.perf_counter() - begin:.1f} s in all")
    return 0 if right == len(questions) else 1


def _one_line(text: str) -> str:
    """An answer fit for a table: on one line, and visible even if it is empty."""
    return " ".join(text.split()) or "(nothing)"
