"""What a request gets: a Completion, the writer that fills it token by token, and views of a run. Here ids become text."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby

from baize_engine.generation.loop import Sample, Step
from baize_engine.generation.sampling import TokenLogprobs
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
    """

    prompt_index: int
    index: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] | None = None
    seed: int | None = None


class Writer:
    """Fills the completion of one sample from its steps, and tells each piece of text as it becomes certain."""

    def __init__(self, sample: Sample, tokenizer: Tokenizer | None) -> None:
        params = sample.params
        seed = sample.seed if params.temperature or params.seed is not None else None
        self.done = Completion(sample.prompt_index, sample.index, seed=seed)
        self.done.logprobs = None if params.logprobs is None else []
        self._sample = sample
        self._text = None if tokenizer is None else IncrementalDecoder(tokenizer, context=sample.prompt_ids)
        self._scanner = StopScanner(params.stop)

    def push(self, step: Step) -> str:
        """The text that the step makes certain; "" often. A stop string that is complete stops the sample."""
        done, text, scanner = self.done, self._text, self._scanner
        done.token_ids.append(step.token_id)
        if done.logprobs is not None and step.logprobs is not None:
            done.logprobs.append(step.logprobs)
        done.finish_reason = step.finish_reason
        done.stop_reason = step.token_id if step.finish_reason == "stop" else None
        piece = "" if text is None or step.finish_reason == "stop" else text.push(step.token_id)
        if step.finish_reason is not None and text is not None:
            piece += text.flush()
        shown = scanner.push(piece, ends=len(done.token_ids) >= self._sample.params.min_new_tokens)
        if scanner.matched is not None:
            done.finish_reason, done.stop_reason = "stop", scanner.matched
            self._sample.stopped = True
        elif step.finish_reason is not None:
            shown += scanner.flush()
        done.text += shown
        return shown


Steps = Generator[tuple[Sample, Step], None, None]
# at each token its sample's writer, and the text that has become certain
Run = Generator[tuple[Writer, str], None, None]


def pushed(writers: Sequence[tuple[Sample, Writer]], steps: Steps, check: Callable[[], None]) -> Run:
    """Each step of a generation to the writer of its sample. `check` raises where the generation is to end before."""
    writer_of = {id(sample): writer for sample, writer in writers}
    with closing(steps):
        for sample, step in steps:
            check()
            writer = writer_of[id(sample)]
            yield writer, writer.push(step)


def in_order(writers: Sequence[tuple[Sample, Writer]], run: Run) -> Generator[list[Completion], None, None]:
    """The completions of each prompt as soon as they and those of all prompts before are whole."""
    left = deque(
        [writer.done for _, writer in group] for _, group in groupby(writers, lambda pair: pair[0].prompt_index)
    )
    with closing(run):
        for writer, _ in run:
            if writer.done.finish_reason is not None:
                while left and all(done.finish_reason is not None for done in left[0]):
                    yield left.popleft()


def pieces(run: Run) -> Generator[tuple[int, int, str], None, None]:
    """(prompt index, sample index, text) wherever some has become certain."""
    with closing(run):
        for writer, piece in run:
            if piece:
                yield writer.done.prompt_index, writer.done.index, piece


def texts(run: Run) -> Generator[str, None, None]:
    """The pieces of a single sample."""
    with closing(pieces(run)) as found:
        for _, _, piece in found:
            yield piece
