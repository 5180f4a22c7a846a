"""Completion, the result of a sample, and AnswerText, which turns its ids into text as they come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from baize_engine.errors import BaizeError
from baize_engine.generation.sampling import TokenLogprobs
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.stop import StopScanner
from baize_engine.text.incremental import IncrementalDecoder
from baize_engine.text.tokenizer import Tokenizer


@dataclass
class Completion:
    """One sample of one prompt.

    The counts of steps and draft tokens only tell how a sample was made, so they do not take part in comparisons.

    Attributes:
        prompt_index: the number of its prompt in the call, from 0.
        index: the number of the sample among those of its prompt, from 0.
        token_ids: all ids generated, including the stop id.
        text: their text, an exact continuation of the prompt, cut before the stop id or stop string; "" without a tokenizer.
        finish_reason: "stop", "length" or "error".
        stop_reason: the stop id or stop string that ended it.
        logprobs: one entry per token if SamplingParams.logprobs asks for them, else None.
        seed: the seed used; passing it again reproduces all n samples of this prompt. None for a greedy sample without one.
        error: why it failed, with finish_reason "error". Only `completions(..., raise_errors=False)` returns such samples.
        num_steps: decode steps that it took. Without speculation, one for each token but the first, which the prompt gives.
        num_draft_tokens: tokens that speculation proposed; 0 without it.
        num_accepted_tokens: how many of those the model chose, too.
    """

    prompt_index: int
    index: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] | None = None
    seed: int | None = None
    error: BaizeError | None = None
    num_steps: int = field(default=0, compare=False)
    num_draft_tokens: int = field(default=0, compare=False)
    num_accepted_tokens: int = field(default=0, compare=False)

    @classmethod
    def of(cls, sequence: Sequence) -> Completion:
        """The completion of a sequence whose last output has been read."""
        if sequence.finish_reason in (None, "abort"):
            raise ValueError(
                f"finish_reason is {sequence.finish_reason!r}, wanted that of a sequence that ended by itself"
            )
        params = sequence.params
        return cls(
            sequence.prompt_index,
            sequence.index,
            sequence.token_ids,
            "" if sequence.text is None else sequence.text.text,
            sequence.finish_reason,
            sequence.stop_reason,
            sequence.logprobs,
            sequence.seed if params.temperature or params.seed is not None else None,
            sequence.error,
            sequence.num_steps,
            sequence.num_proposed,
            sequence.num_accepted,
        )


class AnswerText:
    """Builds the text of an answer token by token, up to a stop string: the TextSink of a Sequence.

    context: the prompt's ids, which the text continues.
    stops: stop strings; none ends the text before token `min_tokens`.
    """

    def __init__(self, tokenizer: Tokenizer, context: Iterable[int], stops: Iterable[str], min_tokens: int) -> None:
        self.text = ""
        self._decoder = IncrementalDecoder(tokenizer, context)
        self._scanner = StopScanner(tuple(stops))
        self._left = min_tokens

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._scanner.matched

    def push(self, token_id: int | None, last: bool) -> str:
        """Adds a token and returns the text that has become certain, often "".

        token_id: None for a stop id, which has no text. last: no token follows.
        """
        self._left -= 1
        piece = "" if token_id is None else self._decoder.push(token_id)
        if last:
            piece += self._decoder.flush()
        shown = self._scanner.push(piece, ends=self._left <= 0)
        if last and self._scanner.matched is None:
            shown += self._scanner.flush()
        self.text += shown
        return shown
