"""What proposes tokens, as the loop sees it: an index of the text so far, or a smaller model."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from typing import Protocol

from baize_engine.generation.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Prospect:
    """What could be proposed for a sequence: at most `most` tokens, each accepted with `chance` if those before it are."""

    chance: float
    most: int


NOTHING = Prospect(0.0, 0)


class Proposer(Protocol):
    """Proposes draft tokens: what may follow a sequence. A wrong proposal costs time, and changes nothing else.

    token_cost: the time that proposing one token takes, in steps of the model with one row.
    """

    token_cost: float

    def prospect(self, sequence: Sequence) -> Prospect:
        """What could be proposed for the sequence now; NOTHING where it is not worth a row of a step. Called often: cheap."""

    def propose(self, wanted: abc.Sequence[tuple[Sequence, int]]) -> list[list[int]]:
        """For each (sequence, n), at most n draft tokens. The sequences have blocks for them."""

    def verified(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        """Learns how many of the tokens proposed last were accepted."""

    def moved(self, sequence: Sequence) -> None:
        """The sequence's blocks were replaced by others: it was swapped out and has come back."""
