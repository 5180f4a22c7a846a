"""What a proposer knows of a sequence: kept on the sequence, and dropped when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from baize_engine.generation.speculation.ngram_index import NgramIndex
from baize_engine.generation.speculation.pace import Pace


@dataclass(eq=False, slots=True)
class Speculation:
    """pace: how its proposals fare; with prompt lookup, what follows short matches."""

    pace: Pace = field(default_factory=Pace)
    quoting: Pace = field(default_factory=lambda: Pace(0.4, 0.1))  # prompt lookup: what follows long matches
    index: NgramIndex = field(default_factory=NgramIndex)  # of prompt lookup; otherwise empty
    num_cached: int = 0  # of a draft model with a cache of its own: the tokens at the beginning that are right in there
