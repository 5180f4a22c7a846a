"""Usage: how many tokens an engine has been asked for, has computed and has made, and in how many steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Protocol


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens in all calls since the model was loaded; differences of two are those of the calls in between.

    Attributes:
        prompt_tokens: of the prompts that were asked for, each counted once for all of its samples.
        computed_tokens: of prompts, those that the model read: fewer than prompt_tokens where prompts begin alike, as equal
            beginnings are read once; more where samples of one prompt, too many to run together, read its end again.
        generated_tokens: of the answers.
        steps: decode steps of the answers; one that several answers take together counts for each of them.
        step_tokens: of generated_tokens, those that steps made: all but the first of each answer. Without speculation, as
            many.
        draft_tokens: proposed to steps by speculation.
        accepted_tokens: of draft_tokens, those that the model chose, too.
        step_time: with speculation, an estimate of the time of the steps, in steps of one answer. It comes from the tables in
            step_costs.py, which were measured elsewhere, and from what a draft model takes; of the host's work only what
            verifying adds is in it.
        plain_time: the same estimate for steps without draft tokens that make the same tokens in batches as large.
    """

    prompt_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    step_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    step_time: float = 0.0
    plain_time: float = 0.0

    def __sub__(self, earlier: Usage) -> Usage:
        """The numbers of the calls since `earlier`."""
        return Usage(*(a - b for a, b in zip(astuple(self), astuple(earlier), strict=True)))

    @property
    def speculation(self) -> str:
        """What speculation did, for people: draft tokens accepted, tokens per step and answer, the estimated speed-up.

        "" where there was no step or no speculation.
        """
        if not self.step_time:
            return ""
        accepted = (
            f"{self.accepted_tokens / self.draft_tokens:.0%} accepted" if self.draft_tokens else "nothing proposed"
        )
        return f"{accepted}, {self.step_tokens / self.steps:.2f} tok/step, ~{self.plain_time / self.step_time:.2f}x"


class StepTimes(Protocol):
    """What estimates the time of a step: a Speculator."""

    def step_time(self, sequences: int, drafts: Sequence[int] = ()) -> float: ...


class Meter:
    """Counts a Usage up: its fields by name, as attributes. Adding two Usages would take 10 us of a step."""

    def __init__(self) -> None:
        self.prompt_tokens = self.computed_tokens = self.generated_tokens = 0
        self.steps = self.step_tokens = self.draft_tokens = self.accepted_tokens = 0
        self.step_time = self.plain_time = 0.0

    def count_step(self, times: StepTimes | None, sequences: int, tokens: int, drafts: Sequence[int] = ()) -> None:
        """Counts a step of so many sequences, which made `tokens`. drafts: numbers of draft tokens. times: with speculation."""
        self.steps += sequences
        self.step_tokens += tokens
        if times is not None and sequences:
            self.step_time += times.step_time(sequences, drafts)
            self.plain_time += tokens / sequences * times.step_time(sequences)

    def read(self) -> Usage:
        """What was counted so far."""
        return Usage(**vars(self))


class Metered(Protocol):
    """What counts its usage: an Engine."""

    @property
    def usage(self) -> Usage: ...


class Since:
    """The usage of an engine from when this was made."""

    def __init__(self, engine: Metered) -> None:
        self._engine, self._before = engine, engine.usage

    @property
    def usage(self) -> Usage:
        """Up to now."""
        return self._engine.usage - self._before

    def speculation(self) -> str:
        """Usage.speculation up to now, for a progress bar."""
        return self.usage.speculation
