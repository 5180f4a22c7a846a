"""The batch of decode steps: sequences join and leave between steps, and the host reads tokens while the device computes more.

The host launches up to AHEAD steps before it reads the oldest one's tokens. A sequence that joins is written to a row of the
state; when one leaves, the last sequence moves to its row. Both are queued on the device, so that the host never waits. Knows
token ids, no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from baize_engine.model.graphs import runs_ahead_on
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.step_state import Stepping, StepState, context_bucket
from baize_engine.model.verify_state import VerifyState

AHEAD = 2  # steps launched before the oldest one's tokens are read: enough to keep the device from waiting for the host

S = TypeVar("S", bound=Stepping)


@dataclass(frozen=True, slots=True)
class Verified(Generic[S]):
    """A sequence's rows of a verification step.

    tokens: those that the model chooses after its last token and after each draft token; NO_TOKEN (-1) where a logit is not
    finite. first: the row of the first.
    """

    sequence: S
    draft: list[int]
    tokens: list[int]
    first: int

    def accepted(self, made: list[int]) -> int:
        """How many of the draft tokens are the first of those that the sequence has made in this step."""
        agreeing = [a == b for a, b in zip(self.draft, made, strict=False)]
        return agreeing.index(False) if False in agreeing else len(agreeing)


class Batch(Generic[S]):
    """Up to `max_rows` sequences that step together. Their blocks must be reserved before `launch`.

    A sequence stops by itself after `num_left` tokens, at a stop id, or when a logit is not finite. It keeps its row until it
    is dropped; until then `read` returns its last token again.
    runs_ahead: whether steps are launched before the tokens of earlier ones are read. Default: true on a GPU.
    state: buffers of at least `max_rows` rows over the same cache, all of them padding. Default: allocated at first use.
    """

    def __init__(
        self,
        model: Llama,
        cache: KVCache,
        max_rows: int,
        *,
        runs_ahead: bool | None = None,
        state: StepState | None = None,
    ) -> None:
        self._model, self._cache, self._max_rows = model, cache, max_rows
        self._runs_ahead = runs_ahead_on(model.device) if runs_ahead is None else runs_ahead
        self._state = state
        self._verify: VerifyState | None = None
        self._has_verified = False
        self._moved = False  # whether sequences have gone on since the state's rows were written
        self._sequences: list[S] = []  # by row
        self._on_host = 0  # sequences whose tokens the host chooses
        self._queued: deque[tuple[list[S], Tensor, torch.cuda.Event | None]] = deque()

    @property
    def state(self) -> StepState:
        """The buffers of all rows, allocated at first use."""
        if self._state is None:
            self._state = StepState(self._model, self._cache, self._max_rows)
        return self._state

    @property
    def sequences(self) -> Sequence[S]:
        """The sequences that step."""
        return self._sequences

    @property
    def in_flight(self) -> int:
        """Steps launched whose tokens have not been read."""
        return len(self._queued)

    @property
    def ahead(self) -> int:
        """The most steps that may be in flight when another is launched."""
        return AHEAD if self._runs_ahead and not self._on_host else 0

    @torch.inference_mode()
    def add(self, sequence: S) -> None:
        """Adds a sequence to the next step, with its last token as input."""
        sequence.row, sequence.num_blocks_sent = len(self._sequences), len(sequence.block_table)
        self.state.put(sequence.row, sequence)
        self._sequences.append(sequence)
        self._on_host += sequence.on_host

    @torch.inference_mode()
    def drop(self, sequence: S) -> None:
        """Removes a sequence. Steps in flight still write its row and blocks, but before any work that is queued later."""
        row, last = sequence.row, self._sequences.pop()
        if last is not sequence:
            self.state.move(last.row, row)
            self._sequences[row], last.row = last, row
        self.state.clear(slice(len(self._sequences), len(self._sequences) + 1))
        sequence.row = -1
        self._on_host -= sequence.on_host
        if not self._sequences:
            self._queued.clear()  # no sequence needs the tokens of these steps

    @torch.inference_mode()
    def reset(self) -> None:
        """Drops all sequences; all rows become padding, as their contents are unknown after a failed step."""
        for sequence in self._sequences:
            sequence.row = -1
        self._sequences, self._on_host = [], 0
        self._has_verified = self._moved = False
        if self._state is not None:
            self._state.set([])
        self._queued.clear()

    @torch.inference_mode()
    def launch(self) -> None:
        """Queues a step of all rows. Callers have already counted its token in each sequence's num_in_flight."""
        state, max_context = self.state, 0
        if self._moved:
            state.resume(self._sequences)
            self._moved = False
        for row, sequence in enumerate(self._sequences):
            blocks = sequence.block_table
            for number in range(sequence.num_blocks_sent, len(blocks)):
                state.add_block(row, number, blocks[number])
            sequence.num_blocks_sent = len(blocks)
            # a sequence that has ended still attends to its context
            max_context = max(max_context, sequence.num_cached + sequence.num_in_flight)
        bound = context_bucket(max_context, self._model.config.max_position_embeddings)
        state.run(bound, self._bucket(len(self._sequences)))
        self._queued.append((list(self._sequences), *_fetch(state.tokens[: len(self._sequences)])))

    @torch.inference_mode()
    def read(self) -> list[tuple[S, int]]:
        """The oldest step's (sequence, token) pairs; NO_TOKEN (-1) for a sequence with a logit that is not finite."""
        sequences, copy, event = self._queued.popleft()
        return list(zip(sequences, _arrived(copy, event), strict=True))

    @torch.inference_mode()
    def verify(self, drafts: Mapping[S, list[int]]) -> list[Verified[S]]:
        """Runs a step of all sequences that has rows for the draft tokens, too, and waits for it. No other may be in flight.

        drafts: what is proposed for some sequences, at least one token for each of them; with the sequences at most `max_rows`
        rows. The tokens' blocks must be reserved. The caller appends those that it accepts, before the next step.
        """
        if self._queued:
            raise ValueError(f"{len(self._queued)} steps are in flight, wanted none")
        if self._verify is None:
            self._verify = VerifyState(self._model, self._cache, self._max_rows)
        proposed = [drafts.get(sequence, []) for sequence in self._sequences]
        tokens: list[int] = self._verify.run(self._sequences, proposed).tolist()
        self._has_verified = self._moved = True
        verified, first = [], 0
        for sequence, draft in zip(self._sequences, proposed, strict=True):
            end = first + 1 + len(draft)
            verified.append(Verified(sequence, draft, tokens[first:end], first))
            first = end
        return verified

    @torch.inference_mode()
    def verified_logits(self, rows: Sequence[int]) -> Tensor:
        """Logits (len(rows), V) float32 of these rows of the last verification step."""
        if self._verify is None or not self._has_verified:
            raise ValueError("no step has verified anything")
        return self._verify.logits[list(rows)]

    @torch.inference_mode()
    def logits(self, sequences: Sequence[S]) -> Tensor:
        """Logits (S, V) float32 of the step read last, as long as no other has been launched since."""
        return self.state.logits[[sequence.row for sequence in sequences]]

    @torch.inference_mode()
    def set_token(self, sequence: S, token_id: int) -> None:
        """Makes `token_id`, which the host chose, the sequence's next input."""
        self.state.set_token(sequence.row, token_id)

    def _bucket(self, rows: int) -> int:
        """`rows` rounded up to 1, 2, 4, ... 64, 128, 192, ... if steps are graphs: each number of rows needs its own."""
        if not self._runs_ahead:
            return rows
        return 1 << (rows - 1).bit_length() if rows <= 64 else -(-rows // 64) * 64


def _fetch(tokens: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Queues a copy of `tokens` to host memory. Returns it with the event of its arrival, None if it is already there."""
    if tokens.device.type != "cuda":
        return tokens.clone(), None
    copy = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
    copy.copy_(tokens, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tokens.device))
    return copy, event


def _arrived(copy: Tensor, event: torch.cuda.Event | None) -> list[int]:
    if event is not None:
        event.synchronize()
    return list(copy.tolist())
