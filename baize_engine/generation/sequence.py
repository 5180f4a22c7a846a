"""Sequence: one sample, from the request until it becomes a Completion. Knows no model, no cache and no tokenizer.

The scheduler moves it, the runner reads it, the loop appends to it and ends it. A sequence that is scored generates nothing
(max_tokens 0), and is otherwise like any other.
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
    from baize_engine.generation.call import Call
    from baize_engine.generation.speculation.state import Speculation

FinishReason = Literal["stop", "length", "error", "abort"]


class Status(Enum):
    """The stage of a sequence."""

    WAITING = "waiting"  # not in the cache
    PREFILL = "prefill"  # its prompt is being computed
    RUNNING = "running"  # takes part in decode steps
    SWAPPED = "swapped"  # its keys and values are in host memory
    FINISHED = "finished"


class TextSink(Protocol):
    """Turns a sequence's tokens into text and finds stop strings in it. Implemented by the layer that knows a tokenizer."""

    text: str  # so far

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, or None."""

    def push(self, token_id: int | None, last: bool) -> str:
        """Adds a token and returns the text that has become certain.

        token_id: None for a stop id, which has no text. last: no token follows.
        """


class Scoring(Protocol):
    """A use of a prompt's logits other than generation."""

    first: int  # needs the logits from this position to the end of the prompt
    not_finite: int | None  # the first position with a logit that is not finite, of those taken so far

    def take(self, position: int, logits: Tensor) -> None:
        """Takes the logits (n, V) float32 of positions `position` to `position + n - 1`; calls come in order."""


@dataclass(eq=False, slots=True)
class Sequence:
    """One sample: the request, and its state. Samples of one prompt share one list `prompt_ids`.

    max_tokens: the most tokens to generate. prompt_index, index: this is sample `index` of prompt `prompt_index` of its call.
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
    call: Call | None = None  # the call that receives its output

    status: Status = Status.WAITING
    token_ids: list[int] = field(default_factory=list)  # generated
    logprobs: list[TokenLogprobs] | None = None  # one per token of token_ids, if params.logprobs asks for them
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop id or stop string
    error: BaizeError | None = None  # why it failed

    block_table: list[int] = field(default_factory=list)
    num_cached: int = 0  # tokens whose keys and values are in the blocks, not counting those in flight
    num_in_flight: int = 0  # tokens that the device is computing and the host has not read
    num_chunks: int = 0  # chunks of the prompt that the block pool knows
    chunk_name: int = 0  # the pool's name for these chunks together
    swapped: int | None = None  # the number under which the cache keeps its keys and values, if it is swapped out
    row: int = -1  # its row in the batch; -1: none
    num_blocks_sent: int = 0  # entries of block_table that the batch has sent to the device
    on_host: bool = field(init=False)  # whether the host chooses its tokens
    speculation: Speculation | None = None  # what its proposer knows about it
    num_steps: int = 0  # decode steps that made tokens of it
    num_proposed: int = 0  # draft tokens
    num_accepted: int = 0
    shaping: Shaping | None = None  # made with the first token, because its tables are as long as the vocabulary

    def __post_init__(self) -> None:
        self.on_host = self.params.logprobs is not None or is_shaped(self.params, self.stop_ids)
        if self.params.logprobs is not None:
            self.logprobs = []

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far, which is the position of the next one."""
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def num_left(self) -> int:
        """Tokens that it may still generate, not counting those in flight."""
        return self.max_tokens - len(self.token_ids) - self.num_in_flight

    @property
    def num_shareable(self) -> int:
        """Tokens at the beginning whose logits are not needed, so that their keys and values may come from another sequence."""
        return len(self.prompt_ids) - 1 if self.scoring is None else self.scoring.first

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

    @property
    def where(self) -> str:
        """The sample and the position of its next token, for messages."""
        return f"sample {self.index}, step {len(self.token_ids)} (position {self.num_tokens})"
