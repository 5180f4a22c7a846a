"""Usage: how many tokens an engine has been asked for, has computed and has made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens in all calls since the model was loaded; differences of two are those of the calls in between.

    prompt_tokens: of the prompts that were asked for, each counted once for all of its samples.
    computed_tokens: of prompts, those that the model read: fewer than prompt_tokens where prompts begin alike, as equal
        beginnings are read once; more where samples of one prompt, too many to run together, read its end again.
    generated_tokens: of the answers.
    """

    prompt_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0

    def __sub__(self, earlier: Usage) -> Usage:
        """The numbers of the calls since `earlier`."""
        return Usage(
            self.prompt_tokens - earlier.prompt_tokens,
            self.computed_tokens - earlier.computed_tokens,
            self.generated_tokens - earlier.generated_tokens,
        )
