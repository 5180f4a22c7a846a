"""Loops that answer the same prompts in turns, step by step, so that a noisy machine is as slow for all of them.

What is timed is `Loop.step`, as users' threads call it. Knows loops and sequences; no models, prompts or reports.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from bench_loop import calls_of_plans
from roofline import synchronize

from baize_engine.generation.loop import Loop
from baize_engine.generation.sequence import Sequence


@dataclass
class Decoded:
    """What the decoding of answers took, all after the first tokens.

    steps: of each sequence, added; rows: how many steps of the loop had so many rows; in_plans: seconds within C++ plans.
    """

    tokens: int = 0
    seconds: float = 0.0
    in_plans: float = 0.0
    steps: int = 0
    proposed: int = 0
    accepted: int = 0
    rows: Counter[int] = field(default_factory=Counter)

    @classmethod
    def sum(cls, parts: Iterable[Decoded]) -> Decoded:
        whole = cls()
        for part in parts:
            whole.tokens += part.tokens
            whole.seconds += part.seconds
            whole.in_plans += part.in_plans
            whole.steps += part.steps
            whole.proposed += part.proposed
            whole.accepted += part.accepted
            whole.rows += part.rows
        return whole


class Answering:
    """The sequences of one loop, whose prompts are computed when this is made."""

    def __init__(self, loop: Loop, sequences: list[Sequence]) -> None:
        self.sequences, self.loop = sequences, loop
        self._device = loop.decoder.model.device
        loop.pool.forget()
        loop.add(sequences)
        while not all(one.token_ids or one.finished for one in sequences):
            loop.step()
        self._begin, self.decoded = self._counted(), Decoded()

    @property
    def going(self) -> bool:
        return not all(one.finished for one in self.sequences)

    @property
    def tokens(self) -> int:
        return sum(len(one.token_ids) for one in self.sequences)

    def step(self, calls: list[tuple[float, float]]) -> tuple[int, float]:
        """Makes and counts a step. calls: as `calls_of_plans` notes them; emptied. Returns its rows and seconds."""
        calls.clear()
        before = self._counted()
        begin = time.perf_counter()
        self.loop.step()
        if not self.going:
            synchronize(self._device)
        took = time.perf_counter() - begin
        after, done = self._counted(), self.decoded
        done.seconds += took
        done.in_plans += sum(end - start for start, end in calls)
        done.tokens, done.steps, done.proposed, done.accepted = (
            now - first for now, first in zip(after, self._begin, strict=True)
        )
        if rows := after[1] + after[2] - before[1] - before[2]:
            done.rows[rows] += 1
        return rows, took

    def said(self) -> list[tuple[list[int], str | None]]:
        """Ids and finish reason of each sequence. Raises the error of one that failed."""
        for one in self.sequences:
            if one.error is not None:
                raise one.error
        return [(one.token_ids, one.finish_reason) for one in self.sequences]

    def _counted(self) -> tuple[int, int, int, int]:
        """Tokens, steps, draft tokens proposed and accepted so far."""
        each = [(len(one.token_ids), one.num_steps, one.num_proposed, one.num_accepted) for one in self.sequences]
        tokens, steps, proposed, accepted = (sum(column) for column in zip(*each, strict=True))
        return tokens, steps, proposed, accepted


def in_turns(loops: Many[Loop], sequences: Callable[[], list[Sequence]]) -> list[Decoded]:
    """What each of the loops took for the sequences, which must end the same in all of them; SystemExit otherwise.

    On a CPU the loop that has the fewest tokens makes the next step, so that all are at the same place of the text. On a GPU,
    which computes steps while the host makes others, one loop after another answers.
    """
    every = [Answering(loop, sequences()) for loop in loops]
    on_gpu = loops[0].decoder.model.device != "cpu"
    with calls_of_plans() as calls:
        while going := [one for one in every if one.going]:
            (going[0] if on_gpu else min(going, key=lambda one: one.tokens)).step(calls)
    wanted = every[0].said()
    for number, one in enumerate(every[1:], 1):
        for place, (got, right) in enumerate(zip(one.said(), wanted, strict=True)):
            if got != right:
                raise SystemExit(f"loop {number}, sequence {place}: {got}, wanted {right} as without speculation")
    return [one.decoded for one in every]
