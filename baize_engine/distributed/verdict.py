"""Why and how a run of ranks ends: one for all ranks, the first that any of them finds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Verdict:
    """`text` is printed after "baize: ", once; an empty one is not: the run ends in order."""

    text: str
    code: int = 1  # the exit code of every rank
    dead: list[int] = field(default_factory=list)  # ranks that cannot print any more
    terminated: bool = False  # by SIGTERM: of no news to a rank that got it too

    @classmethod
    def from_json(cls, text: str | bytes) -> Verdict:
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def in_order(self) -> bool:
        return not self.text
