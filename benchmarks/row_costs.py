"""What steps of several rows of one sequence cost on this machine now, by verifying draft tokens that are all wrong.

Steps of the different numbers of rows take turns, between what else is measured. Knows a model; no prompts or reports.
Whole steps of the loop are timed, its own work included; verify_steps.py times the model's part alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many
from statistics import median

from bench_loop import calls_of_plans
from step_turns import Answering

from baize_engine import SamplingParams
from baize_engine.generation.loop import MAX_ROWS, Loop
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.speculation.proposer import Prospect
from baize_engine.generation.speculation.speculator import Speculator
from baize_engine.model.kv_cache import BLOCK_SIZE
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptRunner, new_cache
from baize_engine.model.step_costs import StepCosts

ROWS = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 32)
LONGEST = 256  # tokens of a text before it begins anew


class Wrong:
    """A proposer of `most` tokens in every step, which few models accept: the last token again and again."""

    token_cost = 0.0

    def __init__(self, most: int) -> None:
        self.most = most

    def prospect(self, sequence: Sequence) -> Prospect:
        return Prospect(1.0, self.most)

    def propose(self, wanted: Many[tuple[Sequence, int]]) -> list[list[int]]:
        return [[sequence.token_ids[-1]] * count for sequence, count in wanted]

    def verified(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        pass

    def moved(self, sequence: Sequence) -> None:
        pass


def loop_over(model: Llama, tokens: int, speculator: Speculator | None = None) -> Loop:
    """The loop over a model and a new cache of so many tokens."""
    return Loop(PromptRunner(model, new_cache(model, tokens)), speculator=speculator)


class RowCosts:
    """Texts after `prompt`, one for each number of rows, each in its own loop."""

    def __init__(self, model: Llama, prompt: list[int]) -> None:
        room = min(LONGEST, model.config.max_position_embeddings // 2)
        self._prompt, self._tokens = prompt[: model.config.max_position_embeddings - room], room
        self._texts = {rows: self._begun(loop) for rows, loop in self._loops(model).items()}
        self.turn()  # makes plans, and on a GPU graphs

    def turn(self) -> dict[int, float]:
        """Seconds of a step by its rows, of one step each."""
        seconds: dict[int, float] = {}
        with calls_of_plans() as calls:
            for rows, text in self._texts.items():
                if text.tokens + rows > self._tokens:  # a draft is no longer than what is left
                    self._texts[rows] = text = self._begun(text.loop)
                made, took = text.step(calls)
                text.said()  # raises what went wrong
                if made == rows:
                    seconds[rows] = took
        return seconds

    def _loops(self, model: Llama) -> dict[int, Loop]:
        free, room = StepCosts({1: 1.0, 2: 1.0}), len(self._prompt) + self._tokens + 2 * BLOCK_SIZE
        return {
            rows: loop_over(model, room, Speculator(Wrong(rows - 1), free, rows - 1, MAX_ROWS) if rows > 1 else None)
            for rows in ROWS
        }

    def _begun(self, loop: Loop) -> Answering:
        return Answering(loop, [Sequence(self._prompt, SamplingParams(), self._tokens)])


def medians(turns: Iterable[dict[int, float]]) -> dict[int, float]:
    """The median of each number of rows."""
    found: dict[int, list[float]] = {}
    for turn in turns:
        for rows, seconds in turn.items():
            found.setdefault(rows, []).append(seconds)
    return {rows: median(some) for rows, some in sorted(found.items())}
