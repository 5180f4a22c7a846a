"""A model that proposes: a smaller one, or the int4 form of the model itself. It steps over blocks that others own.

Knows the loop's sequences and where their text and blocks are; not who verifies.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, field

from torch import Tensor

from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.speculation.pace import Pace
from baize_engine.generation.speculation.proposer import NOTHING, Prospect
from baize_engine.generation.speculation.state import Speculation
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptPiece, PromptRunner
from baize_engine.model.runner import Batch

# Tokens taken as accepted and rejected before any is verified: a draft's row costs more than an index's, so that one
# that were not trusted at first would never be tried.
ACCEPTED, REJECTED = 3.0, 0.5


class DraftModel:
    """The Proposer of a model, which draws each token as the verifying model draws it: by the same random number.

    model: the draft. cache: where it keeps keys and values, in the blocks of the sequences' own tables: a cache of as many
    blocks as the verifying model's, or that cache itself. token_cost: as of a Proposer. max_rows: sequences that it takes.
    shared: whether it is the verifying model's cache: a draft of the same shape reads the keys and values of verified tokens
    there, and its own are overwritten when its tokens are verified. Otherwise it must compute what was verified, too: the
    tokens that it lacks, a whole prompt at first.

    Proposals follow temperature, top_k, top_p and min_p; penalties, biases and banned tokens are left to the verification.
    """

    def __init__(
        self, model: Llama, cache: KVCache, token_cost: float, most: int, max_rows: int, *, shared: bool = False
    ) -> None:
        if most < 1:
            raise ValueError(f"most is {most}, wanted at least 1")
        self.token_cost, self.most = token_cost, most
        self._prompts = PromptRunner(model, cache)
        self._batch: Batch[_Row] = Batch(model, cache, max_rows)
        self._max_rows, self._shared = max_rows, shared
        self._positions = model.config.max_position_embeddings
        self._blocks = -(-self._positions // cache.block_size)  # of a sequence of so many tokens

    def prospect(self, sequence: Sequence) -> Prospect:
        """See Proposer. The chance is how often this sequence's proposals were accepted so far."""
        most = min(self.most, self._positions - sequence.num_tokens + 1)  # the last token proposed is not fed
        return Prospect(_state(sequence).pace.chance(sequence.num_tokens), most) if most > 0 else NOTHING

    def propose(self, wanted: abc.Sequence[tuple[Sequence, int]]) -> list[list[int]]:
        """See Proposer. All step together; longer proposals come first in the batch, which shrinks as others are complete."""
        rows = [self._row(sequence, count) for sequence, count in wanted]
        try:
            self._catch_up(rows)
            self._step(sorted(rows, key=lambda row: -row.wanted))
        except BaseException:
            self._batch.reset()  # which may hold any of the rows
            raise
        for row in rows:
            _cut(row.made, row.sequence)
            state = _state(row.sequence)
            # of the text all, and of the proposal all but the last token, which was no step's input
            state.num_cached = row.sequence.num_cached + len(row.made)
            if not row.made:  # a logit was not finite, and nothing is left for `verified` to tell
                state.pace.verified(1, 0, row.sequence.num_tokens)
        return [row.made for row in rows]

    def verified(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        """See Proposer. What the draft computed after the accepted tokens is of another text."""
        state = _state(sequence)
        state.pace.verified(proposed, accepted, sequence.num_tokens)
        state.num_cached = min(state.num_cached, sequence.num_cached)

    def moved(self, sequence: Sequence) -> None:
        """See Proposer. A cache of its own holds nothing of the sequence in the new blocks."""
        _state(sequence).num_cached = 0

    def _row(self, sequence: Sequence, count: int) -> _Row:
        cached = sequence.num_cached if self._shared else _state(sequence).num_cached
        made = max(0, cached - len(sequence.prompt_ids))
        return _Row(
            sequence,
            wanted=count,
            text=[*sequence.prompt_ids[cached:], *sequence.token_ids[made:]],
            num_cached=cached,
            block_table=sequence.block_table[: self._blocks],
            params=sequence.params,
            seed=sequence.seed,
            index=sequence.index,
        )

    def _catch_up(self, rows: list[_Row]) -> None:
        """Computes the tokens that the draft lacks, up to the last, which is a step's input.

        One is left to the first step, as far as that has rows: it is what is lacking after a proposal that was accepted whole.
        """
        spare = self._max_rows - len(rows)
        behind: list[_Row] = []
        for row in rows:
            if len(row.text) == 2 and spare:
                spare -= 1
            elif len(row.text) > 1:
                behind.append(row)
        while behind:
            room, pieces = self._prompts.prefill_chunk, list[PromptPiece]()
            for row in behind if self._prompts.together else behind[:1]:
                ids = row.text[: min(room, len(row.text) - 1)]
                if not ids:
                    break
                pieces.append(PromptPiece(ids, row, self._positions, _ignore))
                room -= len(ids)
                row.text = row.text[len(ids) :]
            self._prompts.run(pieces)
            behind = [row for row in behind if len(row.text) > 1]

    def _step(self, rows: list[_Row]) -> None:
        """Makes the tokens that the rows want, most first."""
        batch = self._batch
        for row in rows:
            row.token_ids = row.text[:1]
            batch.add(row)
        if lacking := {row: row.text[1:] for row in rows if len(row.text) > 1}:
            for one in batch.verify(lacking):
                one.sequence.num_cached += len(one.tokens)
                one.sequence.token_ids = one.tokens[-1:]
                one.sequence.made += one.tokens[-1:]
        going, launched = list(rows), 0
        while going[0].num_left:
            while not going[-1].num_left:
                batch.drop(going.pop())
            for row in going:
                row.num_in_flight += 1
            batch.launch()
            launched += 1
        for _ in range(launched):
            for row, token in batch.read():
                row.made.append(token)
        while going:
            batch.drop(going.pop())


@dataclass(eq=False, slots=True)
class _Row:
    """A sequence in a batch of the draft's steps.

    text: the tokens that the draft has not computed, the last of which is the input of the first step. made: the proposal.
    """

    sequence: Sequence
    wanted: int
    text: list[int]
    num_cached: int
    block_table: list[int]
    params: SamplingParams
    seed: int
    index: int
    made: list[int] = field(default_factory=list)

    token_ids: list[int] = field(default_factory=list)  # the last is the input of the next step
    num_in_flight: int = 0
    row: int = -1
    num_blocks_sent: int = 0
    on_host: bool = False
    stop_ids: tuple[int, ...] = ()  # `_cut` sees to them: all rows are read only at the end

    @property
    def num_left(self) -> int:
        return self.wanted - len(self.made) - self.num_in_flight


def _cut(made: list[int], sequence: Sequence) -> None:
    """Removes what cannot be accepted: tokens after a stop id, or from one on that is none because a logit was not finite."""
    for place, token in enumerate(made):
        if token < 0 or token in sequence.stop_ids:
            del made[place + (token >= 0) :]
            return


def _ignore(position: int, logits: Tensor) -> None:
    """Takes the logits of a PromptPiece that asks for none."""


def _state(sequence: Sequence) -> Speculation:
    if sequence.speculation is None:
        sequence.speculation = Speculation(Pace(ACCEPTED, REJECTED))
    return sequence.speculation
