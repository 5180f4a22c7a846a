"""Completion, what a request gets, and the text of an answer as it grows. Here ids become text."""

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

    token_ids: all that was generated, the stop id included. text: their text, as the exact continuation of the prompt,
    cut before the stop id or stop string; "" without a tokenizer. finish_reason: "stop" or "length". stop_reason: the
    id or the string that stopped it. logprobs: one entry per token, if asked for. seed: the one that was used; given
    again, it brings all n samples of this prompt back. None: it was greedy and none was given, so that none was used.
    error: why it could not be finished; finish_reason is "error" then. Only `completions(..., raise_errors=False)` gives such.
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

    @classmethod
    def of(cls, sequence: Sequence) -> Completion:
        """That of a sequence that has finished."""
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
        )


class AnswerText:
    """The text of an answer, token by token, up to a stop string: the TextSink of a Sequence.

    stops: not looked for in the first `min_tokens` - 1 tokens. context: the prompt, which the text continues.
    """

    def __init__(self, tokenizer: Tokenizer, context: Iterable[int], stops: Iterable[str], min_tokens: int) -> None:
        self.text = ""
        self._decoder = IncrementalDecoder(tokenizer, context)
        self._scanner = StopScanner(tuple(stops))
        self._left = min_tokens

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text."""
        return self._scanner.matched

    def push(self, token_id: int | None, last: bool) -> str:
        """The text that has become certain; "" often. None: the token is a stop id, which has no text."""
        self._left -= 1
        piece = "" if token_id is None else self._decoder.push(token_id)
        if last:
            piece += self._decoder.flush()
        shown = self._scanner.push(piece, ends=self._left <= 0)
        if last and self._scanner.matched is None:
            shown += self._scanner.flush()
        self.text += shown
        return shown
