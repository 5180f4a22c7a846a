"""Prompt lookup: proposes what followed the end of the text where it occurred before, in the prompt or in the answer.

Knows ids only, no model. Edited code, quotes and echoed records repeat long stretches of a prompt, and any text repeats short
ones.
"""

from __future__ import annotations

from collections import abc

from baize_engine.generation.sequence import Sequence
from baize_engine.generation.speculation.pace import Pace
from baize_engine.generation.speculation.proposer import NOTHING, Prospect
from baize_engine.generation.speculation.state import Speculation

LONG = 8  # tokens of a match that is likely a quote: what follows holds in over half, in prose, code and worked answers
SPECULATE_TOKENS = 15  # and 16 rows: edits gain 4.5 times at float16 on Zen 5, with 8 tokens 4.1, with 4 only 3.0


class Ngrams:
    """The Proposer of prompt lookup: at most `most` tokens for a sequence, which cost no time of a model."""

    token_cost = 0.0

    def __init__(self, most: int = SPECULATE_TOKENS) -> None:
        if most < 1:
            raise ValueError(f"most is {most}, wanted at least 1")
        self.most = most

    def prospect(self, sequence: Sequence) -> Prospect:
        """See Proposer. The chance is how often text went on as after its matches, short or long, in this answer so far."""
        state = sequence.speculation
        if state is None:
            state = sequence.speculation = Speculation()
            state.index.extend(sequence.prompt_ids)
        index = state.index
        for token in sequence.token_ids[len(index.ids) - len(sequence.prompt_ids) :]:
            if index.length:  # a proposal is judged whether it was made or not, so that learning costs no rows
                _pace(state).verified(1, int(index.ids[index.start] == token), len(index.ids))
            index.extend((token,))
        return Prospect(_pace(state).chance(len(index.ids)), self.most) if index.length else NOTHING

    def propose(self, wanted: abc.Sequence[tuple[Sequence, int]]) -> list[list[int]]:
        """See Proposer. What follows the match that `prospect` found."""
        return [
            [] if sequence.speculation is None else sequence.speculation.index.continuation(count)
            for sequence, count in wanted
        ]

    def verified(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        """See Proposer. Nothing to do: `prospect` sees it in the text."""

    def moved(self, sequence: Sequence) -> None:
        """See Proposer. Nothing to do: the text is the same."""


def _pace(state: Speculation) -> Pace:
    return state.quoting if state.index.length >= LONG else state.pace
