"""The prompts of bench_speculate: eight of each kind, in the demo model's chat format, of a seed that its training did not see.

Three kinds ask for text of the prompt, which a model that quotes copies token by token; stories ask for none. quoting.py draws
them from words that the demo model knows; to other models they are text like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from quoting import Task, code_edit, free_story, json_echo, quoting_summary

KINDS = {"code_edit": code_edit, "quoting_summary": quoting_summary, "json_echo": json_echo, "free_story": free_story}
QUOTING = ("code_edit", "quoting_summary", "json_echo")
EACH = 8
SIZES = (8, 9)  # answers of 60 to 130 tokens of the demo model


@dataclass(frozen=True)
class Prompt:
    """A prompt of `kind`, one of KINDS.

    answer: what is right; None where anything is.
    temperature: to draw the answer with. Greedily, the demo model repeats sentences of its own stories, which would be quotes.
    """

    kind: str
    text: str
    answer: str | None
    temperature: float


def prompts(seed: int = 2026) -> list[Prompt]:
    """EACH prompts of every kind, in the order of KINDS; the same on every call."""
    return [drawn(kind, Random(f"{seed} {kind} {number}")) for kind in KINDS for number in range(EACH)]


def drawn(kind: str, rng: Random) -> Prompt:
    task: Task = KINDS[kind](rng, rng.choice(SIZES))
    text = f"<|user|>\n{task.question}\n<|assistant|>\n"
    return Prompt(kind, text, task.answer, 0.0) if kind in QUOTING else Prompt(kind, text, None, 1.0)
