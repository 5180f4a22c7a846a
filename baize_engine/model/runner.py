"""The batch of decode steps: sequences come and go between steps, and the host reads tokens while the device makes others.

The host runs AHEAD steps in front of the tokens it has read. A new sequence is written into a row of the state, the last one
moves to the row of one that leaves, both in the order of the device's work, so that nobody waits. Knows token ids, no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from baize_engine.model.graphs import runs_ahead_on
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.step_state import Stepping, StepState, context_bucket

AHEAD = 2  # steps launched before the oldest one's tokens are read: enough that the device never waits for the host

S = TypeVar("S", bound=Stepping)


class Batch(Generic[S]):
    """Sequences that step together, up to `max_rows`. Their blocks must be reserved before `launch`.

    A sequence stops by itself after `num_left` tokens, at a stop id, or where its logits are not finite. It keeps its row
    until it is dropped, and `read` gives its last token again. `runs_ahead`: whether the host launches steps before it has
    read the tokens of those before; on a GPU it does.
    """

    def __init__(self, model: Llama, cache: KVCache, max_rows: int, *, runs_ahead: bool | None = None) -> None:
        self._model, self._cache, self._max_rows = model, cache, max_rows
        self._runs_ahead = runs_ahead_on(model.device) if runs_ahead is None else runs_ahead
        self._state: StepState | None = None  # made with the first sequence
        self._sequences: list[S] = []  # by row
        self._on_host = 0  # how many of them
        self._queued: deque[tuple[list[S], Tensor, torch.cuda.Event | None]] = deque()

    @property
    def state(self) -> StepState:
        """The buffers of all rows."""
        if self._state is None:
            self._state = StepState(self._model, self._cache, self._max_rows)
        return self._state

    @property
    def in_flight(self) -> int:
        """Steps launched whose tokens were not read."""
        return len(self._queued)

    @property
    def ahead(self) -> int:
        """How many of them there may be when another is launched."""
        return AHEAD if self._runs_ahead and not self._on_host else 0

    @torch.inference_mode()
    def add(self, sequence: S) -> None:
        """The sequence takes part from the next launch on, with its last token as input."""
        sequence.row, sequence.num_blocks_sent = len(self._sequences), len(sequence.block_table)
        self.state.put(sequence.row, sequence)
        self._sequences.append(sequence)
        self._on_host += sequence.on_host

    @torch.inference_mode()
    def drop(self, sequence: S) -> None:
        """The sequence takes part no more. What the device writes for it was queued before anything from now on."""
        row, last = sequence.row, self._sequences.pop()
        if last is not sequence:
            self.state.move(last.row, row)
            self._sequences[row], last.row = last, row
        self.state.clear(slice(len(self._sequences), len(self._sequences) + 1))
        sequence.row = -1
        self._on_host -= sequence.on_host
        if not self._sequences:
            self._queued.clear()  # steps whose tokens nobody waits for

    def reset(self) -> None:
        """Drops all sequences and buffers, after a step that failed: what they hold is not known."""
        for sequence in self._sequences:
            sequence.row = -1
        self._sequences, self._on_host, self._state = [], 0, None
        self._queued.clear()

    @torch.inference_mode()
    def launch(self) -> None:
        """Queues a step of all rows. A sequence that takes part has counted the token in num_in_flight."""
        state, max_context = self.state, 0
        for row, sequence in enumerate(self._sequences):
            blocks = sequence.block_table
            for number in range(sequence.num_blocks_sent, len(blocks)):
                state.add_block(row, number, blocks[number])
            sequence.num_blocks_sent = len(blocks)
            # one that has ended attends to its own context still
            max_context = max(max_context, sequence.num_cached + sequence.num_in_flight)
        bound = context_bucket(max_context, self._model.config.max_position_embeddings)
        state.run(bound, self._bucket(len(self._sequences)))
        self._queued.append((list(self._sequences), *_fetch(state.tokens[: len(self._sequences)])))

    @torch.inference_mode()
    def read(self) -> list[tuple[S, int]]:
        """The tokens of the oldest step, of each sequence that took part; NO_TOKEN (-1) where its logits are not finite."""
        sequences, copy, event = self._queued.popleft()
        return list(zip(sequences, _arrived(copy, event), strict=True))

    @torch.inference_mode()
    def logits(self, sequences: Sequence[S]) -> Tensor:
        """Logits (S, V) float32 of the step that was read last, where no other was launched since."""
        return self.state.logits[[sequence.row for sequence in sequences]]

    @torch.inference_mode()
    def set_token(self, sequence: S, token_id: int) -> None:
        """Makes the host's choice the sequence's next input."""
        self.state.tokens[sequence.row : sequence.row + 1].fill_(token_id)

    def _bucket(self, rows: int) -> int:
        """1, 2, 4, ... 64, 128, 192, ... rows, where each takes a graph of its own."""
        if not self._runs_ahead:
            return rows
        return 1 << (rows - 1).bit_length() if rows <= 64 else -(-rows // 64) * 64


def _fetch(tokens: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Asks for a copy in the host's memory, and the event of its arrival; nobody waits."""
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
