"""The speculator: which sequences of a step get draft tokens, and how many. Knows what a step costs; not who proposes."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from dataclasses import replace

from baize_engine.generation.sequence import Sequence
from baize_engine.generation.speculation.pace import allot, drafting_time
from baize_engine.generation.speculation.proposer import Proposer
from baize_engine.model.step_costs import StepCosts


class Speculator:
    """Proposes draft tokens for the sequences of a step, where that makes more tokens in its time.

    costs: the time of a step by its rows. most: the most draft tokens of a sequence. max_rows: the most rows of a step.
    """

    def __init__(self, proposer: Proposer, costs: StepCosts, most: int, max_rows: int) -> None:
        self.proposer, self._costs, self._most, self._max_rows = proposer, costs, most, max_rows

    def waits(self, sequences: abc.Sequence[Sequence]) -> bool:
        """Whether the next step would have draft tokens: if so, all tokens in flight must be read before it."""
        return any(self._allotted(sequences))

    def drafts(
        self, sequences: abc.Sequence[Sequence], reserve: Callable[[Sequence, int], int]
    ) -> dict[Sequence, list[int]]:
        """Draft tokens for some of the sequences of a step that is being launched, which have no other tokens in flight.

        reserve(sequence, n): makes room for n more tokens, or fewer, and returns for how many.
        """
        wanted = [
            (sequence, room)
            for sequence, count in zip(sequences, self._allotted(sequences), strict=True)
            if count and (room := reserve(sequence, count))
        ]
        proposed = self.proposer.propose(wanted) if wanted else []
        return {sequence: draft for (sequence, _), draft in zip(wanted, proposed, strict=True) if draft}

    def step_time(self, sequences: int, drafts: abc.Sequence[int] = ()) -> float:
        """An estimate of the time of a step, in steps of one sequence. drafts: numbers of draft tokens of some sequences.

        It is read from tables of costs, which were measured on another machine or model.
        """
        time = self._costs.of(sequences + sum(drafts))
        if not any(drafts):
            return time
        return time + self._costs.verifying + self.proposer.token_cost * drafting_time(drafts, self._costs)

    def _allotted(self, sequences: abc.Sequence[Sequence]) -> list[int]:
        """How many draft tokens each of the sequences should get."""
        prospects = []
        for sequence in sequences:
            prospect = self.proposer.prospect(sequence)
            left = sequence.max_tokens - len(sequence.token_ids) - 1  # a step chooses one token more than it verifies
            prospects.append(replace(prospect, most=min(prospect.most, self._most, left)))
        rows = len(sequences)
        return allot(prospects, rows, self._max_rows - rows, self._costs, self.proposer.token_cost)
