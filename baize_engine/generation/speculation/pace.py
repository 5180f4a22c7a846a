"""How much to propose: how likely a sequence's proposals are accepted, and what a step has time for. Plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace

from baize_engine.generation.speculation.proposer import Prospect
from baize_engine.model.step_costs import StepCosts

WINDOW = 32  # verified tokens that weigh as much as all before them, about
HALF_LIFE = 64  # tokens of text in which what was seen loses half its weight, so that what failed is tried again


@dataclass(eq=False, slots=True)
class Pace:
    """The chance that a proposed token is accepted, if those before it are: of a sequence, learnt from what was verified.

    Starts as if `prior_accepted` tokens had been accepted and `prior_rejected` rejected. If all fail, the chance falls
    until a row costs more than it promises; as the failures fade it rises again, and there is one more try. If c is the least
    chance that pays for a row, failures weigh about prior_accepted / c then, of which ln 2 / HALF_LIFE fades in a token, and
    each costs c tokens: so the loss is about prior_accepted tokens at first and 0.5 % ever after, whatever c is; or 2 % where c
    is less than that, since failures weigh WINDOW at most.
    """

    prior_accepted: float = 0.5
    prior_rejected: float = 0.5
    _accepted: float = field(default=0.0, init=False)
    _rejected: float = field(default=0.0, init=False)
    _position: int = field(default=0, init=False)  # where they had this weight

    def chance(self, position: int) -> float:
        """The chance at this position of the text."""
        kept = 0.5 ** ((position - self._position) / HALF_LIFE)
        accepted = self.prior_accepted + kept * self._accepted
        return accepted / (accepted + self.prior_rejected + kept * self._rejected)

    def verified(self, proposed: int, accepted: int, position: int) -> None:
        """Learns that `accepted` of `proposed` tokens were right; those after the first wrong one say nothing."""
        each = 1 - 1 / WINDOW  # what a token leaves of the weight of those before it
        kept = each**accepted
        faded = 0.5 ** ((position - self._position) / HALF_LIFE)
        self._accepted = faded * kept * self._accepted + (1 - kept) * WINDOW
        self._rejected *= faded * kept
        self._position = position
        if accepted < proposed:
            self._accepted *= each
            self._rejected = each * self._rejected + 1


def allot(prospects: Sequence[Prospect], rows: int, room: int, costs: StepCosts, token_cost: float) -> list[int]:
    """How many tokens to propose for each prospect, so that the step makes the most tokens per time.

    rows: of the step without proposals, each of which makes a token; one more for each proposed token, `room` at most. The
    n-th token of a prospect is accepted with chance ** n; a chance of 0 gets none. token_cost: as of a Proposer.

    Likelier tokens come first, so that the number of rows is all there is to choose: each is tried, since costs have steps.
    Where proposing costs nothing, no other allotment is faster.
    """
    heap = [(-one.chance, index) for index, one in enumerate(prospects) if one.most > 0 and one.chance > 0]
    heapify(heap)
    wanted: list[int] = []  # a prospect for each token
    counts = [0] * len(prospects)
    proposing: list[int] = []  # how many sequences get a first token, a second, ...: a draft model makes these together
    drafting = 0.0
    expected, chosen, best = float(rows), 0, rows / costs.of(rows) if heap else 0.0
    while heap and len(wanted) < room:
        chance, index = heap[0]
        if token_cost:
            drafting += token_cost * _added(proposing, counts[index], costs)
        counts[index] += 1
        if counts[index] < prospects[index].most:
            heapreplace(heap, (chance * prospects[index].chance, index))
        else:
            heappop(heap)
        wanted.append(index)
        expected -= chance
        speed = expected / (costs.of(rows + len(wanted)) + costs.verifying + drafting)
        if speed > best:
            chosen, best = len(wanted), speed
    for index in wanted[chosen:]:
        counts[index] -= 1
    return counts


def drafting_time(counts: Sequence[int], costs: StepCosts) -> float:
    """The time of proposing so many tokens for each sequence, in steps of the draft with one row; all take them together."""
    proposing: list[int] = []
    return sum(_added(proposing, place, costs) for count in counts for place in range(count))


def _added(proposing: list[int], place: int, costs: StepCosts) -> float:
    """The time that one more sequence's token at `place` of its proposal adds; counts it in `proposing`, which may grow."""
    if place == len(proposing):
        proposing.append(0)
    proposing[place] += 1
    return costs.of(proposing[place]) - (costs.of(proposing[place] - 1) if proposing[place] > 1 else 0.0)
