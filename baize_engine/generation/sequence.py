"""Sequence: one sample, from the moment it is asked for until it is a Completion. Knows no model, no cache and no tokenizer.

The scheduler moves it, the runner reads it, the loop appends to it and ends it. A sequence to be scored generates nothing
(max_tokens 0) and is like any other in all else.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor

from baize_engine.errors import BaizeError
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sampling import TokenLogprobs
from baize_engine.generation.shaping import Shaping, is_shaped

if TYPE_CHECKING:
    from baize_engine.generation.serving import Call

FinishReason = Literal["stop", "length", "error", "abort"]


class Status(Enum):
    """Where a sequence is on its way."""

    WAITING = "waiting"  # nothing of it is in the cache
    PREFILL = "prefill"  # its prompt is being computed
    RUNNING = "running"  # takes part in decode steps
    SWAPPED = "swapped"  # what it had in the cache is in the host's memory
    FINISHED = "finished"


class TextSink(Protocol):
    """Turns a sequence's tokens into text, and looks for stop strings there. Given by the layer that knows a tokenizer."""

    text: str  # so far

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text."""

    def push(self, token_id: int | None, last: bool) -> str:
        """The text that has become certain. None: the token is a stop id, which has no text. `last`: no token follows."""


class Scoring(Protocol):
    """What is wanted of a prompt's logits."""

    first: int  # logits are wanted from this position on, to the end of the prompt
    finite: bool  # all logits taken so far are

    def take(self, position: int, logits: Tensor) -> None:
        """Takes the logits (n, V) float32 of the positions from `position` on."""


@dataclass(eq=False, slots=True)
class Sequence:
    """One sample: what is asked, and how far it is. Samples of one prompt share one list `prompt_ids`.

    max_tokens: tokens to generate at most. prompt_index, index: sample `index` of prompt `prompt_index` of its call.
    """

    prompt_ids: list[int]
    params: SamplingParams
    max_tokens: int
    seed: int = 0
    index: int = 0
    prompt_index: int = 0
    stop_ids: Collection[int] = ()
    text: TextSink | None = None
    scoring: Scoring | None = None
    call: Call | None = None  # who gets its output

    status: Status = Status.WAITING
    token_ids: list[int] = field(default_factory=list)  # generated
    logprobs: list[TokenLogprobs] | None = None  # one for each of token_ids, where params.logprobs asks for them
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop id or stop string
    error: BaizeError | None = None  # why it could not be finished

    block_table: list[int] = field(default_factory=list)
    num_cached: int = 0  # tokens whose keys and values are in the blocks, those in flight left out
    num_in_flight: int = 0  # tokens that the device is making and the host has not read
    num_chunks: int = 0  # chunks of the prompt that the block pool knows,
    chunk_name: int = 0  # and its name for all of them
    saved: tuple[Tensor, Tensor] | None = None  # keys and values of a swapped sequence
    row: int = -1  # its place in the batch
    num_blocks_sent: int = 0  # blocks that the batch has told the device
    on_host: bool = field(init=False)  # the host chooses its tokens
    shaping: Shaping | None = None  # made with the first token: it holds tables as long as the vocabulary

    def __post_init__(self) -> None:
        self.on_host = self.params.logprobs is not None or is_shaped(self.params, self.stop_ids)
        if self.params.logprobs is not None:
            self.logprobs = []

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far: the position of the next one."""
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def num_left(self) -> int:
        """Tokens that it may still make, those in flight left out."""
        return self.max_tokens - len(self.token_ids) - self.num_in_flight

    @property
    def num_shareable(self) -> int:
        """Tokens at the beginning whose logits nobody wants, so that another's keys and values do as well."""
        return len(self.prompt_ids) - 1 if self.scoring is None else self.scoring.first

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

    @property
    def where(self) -> str:
        """The sample and its next token, for messages."""
        return f"sample {self.index}, step {len(self.token_ids)} (position {self.num_tokens})"
