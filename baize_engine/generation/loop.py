"""The loop: schedule, run, postprocess. One loop serves all calls of an engine. Token ids only.

Sequences share the cache and the steps, but their results do not depend on each other. Not thread-safe: serving.py makes one
call at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from baize_engine.errors import BaizeError
from baize_engine.generation.block_pool import BlockPool
from baize_engine.generation.sampling import SampleOp, choose_tokens, token_logprobs
from baize_engine.generation.scheduler import Action, Fail, Launch, Piece, Prefill, Read, Scheduler, SwapIn, SwapOut
from baize_engine.generation.sequence import FinishReason, Sequence
from baize_engine.generation.shaping import shaping
from baize_engine.generation.speculation.speculator import Speculator
from baize_engine.generation.usage import Meter, Usage
from baize_engine.model.prompt_runner import PromptPiece, PromptRunner
from baize_engine.model.runner import Batch, Verified

MAX_ROWS = 64  # sequences per step: the most rows for which a GPU's products keep one order of summation
# the device's token if a logit is not finite, and the token of a sequence that ends without one
NO_TOKEN = -1

# after each token: its sequence, the text that has become certain, whether the token was the last
Output = tuple[Sequence, str, bool]


class Loop:
    """Runs sequences over one model and its cache, at most `max_rows` of them per step.

    decoder: runs the prompts.
    batch: runs the steps. Default: made from the decoder's model.
    sample: the op that draws tokens. Default: the model's.
    speculator: proposes tokens that steps verify. Default: none, so that each step makes one token of a sequence.
    """

    def __init__(
        self,
        decoder: PromptRunner,
        max_rows: int = MAX_ROWS,
        *,
        batch: Batch[Sequence] | None = None,
        sample: SampleOp | None = None,
        speculator: Speculator | None = None,
    ) -> None:
        self.decoder, self.cache = decoder, decoder.cache
        self.pool = BlockPool(self.cache.num_blocks, self.cache.block_size, self.cache.chunk)
        self._sample = sample or decoder.model.ops.sample
        self._scheduler = Scheduler(self.pool, max_rows, decoder.prefill_chunk, decoder.together)
        self._batch = batch or Batch(decoder.model, self.cache, max_rows, runs_ahead=decoder.runs_ahead)
        self._speculator = speculator
        self._swaps = 0  # sequences swapped out so far
        self._meter = Meter()

    @property
    def usage(self) -> Usage:
        """The numbers of tokens and steps so far. May be read while another thread steps."""
        return self._meter.read()

    def add(self, sequences: Collection[Sequence]) -> None:
        """Queues sequences. Each, unless it is aborted, ends with an output marked as its last, also if it fails."""
        self._meter.prompt_tokens += sum(len(sequence.prompt_ids) for sequence in sequences if not sequence.index)
        self._scheduler.add(sequences)

    def abort(self, sequence: Sequence) -> None:
        """Ends a sequence without further output."""
        if not sequence.finished:
            self._end(sequence, "abort")

    def fail(self) -> list[Sequence]:
        """Aborts and returns all unfinished sequences, after `step` raised an error that is no single sequence's."""
        self._batch.reset()
        sequences = self._scheduler.sequences
        for sequence in sequences:
            self._end(sequence, "abort")
        return sequences

    def step(self) -> list[Output]:
        """Carries out the next action, such as a piece of a prompt or a decode step, and returns its outputs."""
        in_flight = self._batch.in_flight
        action = Read() if in_flight > self._ahead() else self._scheduler.schedule(in_flight > 0)
        if isinstance(action, Launch) and not in_flight and (drafts := self._drafts(action.sequences)):
            return self._verify(drafts)
        return [] if action is None else self._postprocess(self._run(action))

    def _ahead(self) -> int:
        """The most steps that may be in flight when another is launched: none if that one is to verify draft tokens."""
        ahead = self._batch.ahead
        if ahead and self._speculator is not None and self._speculator.waits(self._batch.sequences):
            return 0
        return ahead

    def _drafts(self, sequences: list[Sequence]) -> dict[Sequence, list[int]]:
        if self._speculator is None:
            return {}
        drafts = self._speculator.drafts(sequences, self._scheduler.draft)
        for sequence in sequences:
            self._scheduler.drafted(sequence, len(drafts.get(sequence, ())))
        return drafts

    def _verify(self, drafts: dict[Sequence, list[int]]) -> list[Output]:
        """Runs a step that has rows for the draft tokens, too.

        Tokens are appended one after another, as those of decode steps, as long as the one just appended is the next draft
        token: what the model chose in the row after it is then right.
        """
        verified = self._batch.verify(drafts)
        before = [len(row.sequence.token_ids) for row in verified]
        outputs: list[Output] = []
        going, place = verified, 0
        while going:
            made = self._made(going, place)
            outputs += self._postprocess(made)
            going = [
                row
                for row, (_, token) in zip(going, made, strict=True)
                if row.draft[place : place + 1] == [token] and not row.sequence.finished
            ]
            place += 1
        for row, start in zip(verified, before, strict=True):
            self._settle(row, start)
        tokens = sum(len(row.sequence.token_ids) for row in verified) - sum(before)
        self._meter.count_step(self._speculator, len(verified), tokens, [len(row.draft) for row in verified])
        return outputs

    def _settle(self, row: Verified[Sequence], before: int) -> None:
        """Ends a sequence's part in a verification step, before which it had made `before` tokens."""
        sequence, proposed = row.sequence, len(row.draft)
        accepted = row.accepted(sequence.token_ids[before:])
        sequence.num_steps += 1
        sequence.num_proposed += proposed
        sequence.num_accepted += accepted
        self._meter.draft_tokens += proposed
        self._meter.accepted_tokens += accepted
        if not sequence.finished:
            self._scheduler.verified(sequence)
            if proposed and self._speculator is not None:
                self._speculator.proposer.verified(sequence, proposed, accepted)

    def _made(self, verified: list[Verified[Sequence]], place: int) -> list[tuple[Sequence, int]]:
        """The token that each sequence makes in row `place` of its rows."""
        for row in verified:
            self._scheduler.arrived(row.sequence)
        on_host = [row for row in verified if row.sequence.on_host]
        chosen = []
        if on_host:
            logits = self._batch.verified_logits([row.first + place for row in on_host])
            chosen = self._choose([row.sequence for row in on_host], logits)
        in_order = iter(chosen)
        return [(row.sequence, next(in_order) if row.sequence.on_host else row.tokens[place]) for row in verified]

    def _run(self, action: Action) -> list[tuple[Sequence, int]]:
        """Carries out the action. Returns the tokens it made."""
        if isinstance(action, Launch):
            self._batch.launch()
            return self._read() if self._batch.in_flight > self._batch.ahead else []
        if isinstance(action, Read):
            return self._read()
        if isinstance(action, Prefill):
            return self._prefill(action)
        if isinstance(action, SwapOut):
            self._batch.drop(action.sequence)
            self._swaps += 1
            self.cache.swap_out(self._swaps, action.blocks)
            action.sequence.swapped = self._swaps  # now that the cache keeps them: memory may have run out
        elif isinstance(action, SwapIn):
            self._swap_in(action.sequence, action.kept)
        elif isinstance(action, Fail):
            action.sequence.error = action.error
            return [(action.sequence, NO_TOKEN)]
        return []

    def _prefill(self, action: Prefill) -> list[tuple[Sequence, int]]:
        """Computes pieces of prompts. Returns the first tokens of those that are complete."""
        last: dict[Sequence, Tensor] = {}  # logits (1, V) of the last token of a prompt that is to be continued
        self.decoder.run([_piece(piece, last) for piece in action.pieces])
        self._meter.computed_tokens += sum(piece.end - piece.begin for piece in action.pieces)
        made: list[tuple[Sequence, int]] = []
        starting: list[Sequence] = []
        logits: list[Tensor] = []
        for sequence in [piece.sequence for piece in action.pieces]:
            if sequence.scoring is not None and sequence.scoring.not_finite is not None:
                sequence.error = _not_finite(f"a logit after token {sequence.scoring.not_finite} is")
                made.append((sequence, NO_TOKEN))
                continue
            for ready, copy in self._scheduler.prefilled(sequence):
                if copy is not None:
                    self.cache.copy_block(*copy)
                if ready.scoring is not None:
                    made.append((ready, NO_TOKEN))
                    continue
                ready.shaping = shaping(ready.params, ready.prompt_ids, ready.stop_ids)
                starting.append(ready)
                logits.append(last[sequence])
        if starting:
            made += zip(starting, self._choose(starting, torch.cat(logits)), strict=True)
        return made

    def _swap_in(self, sequence: Sequence, kept: int) -> None:
        if sequence.swapped is None:
            raise ValueError("nothing of this sequence was swapped out")
        self.cache.swap_in(sequence.swapped, kept, sequence.block_table[kept:])
        sequence.swapped = None
        self._batch.add(sequence)
        if self._speculator is not None:
            self._speculator.proposer.moved(sequence)

    def _read(self) -> list[tuple[Sequence, int]]:
        """The oldest step's tokens, except those of sequences that ended while it was in flight."""
        made = [(sequence, token) for sequence, token in self._batch.read() if not sequence.finished]
        for sequence, _ in made:
            self._scheduler.arrived(sequence)
            sequence.num_steps += 1
        self._meter.count_step(self._speculator, len(made), len(made))
        on_host = [sequence for sequence, _ in made if sequence.on_host]
        if not on_host:
            return made
        chosen = self._choose(on_host, self._batch.logits(on_host))
        for sequence, token in zip(on_host, chosen, strict=True):
            self._batch.set_token(sequence, token)
        in_order = iter(chosen)
        return [(sequence, next(in_order) if sequence.on_host else token) for sequence, token in made]

    def _choose(self, sequences: list[Sequence], logits: Tensor) -> list[int]:
        """A token for each row of `logits` (S, V), or NO_TOKEN with its error set. The host sees answers' logits only here."""
        tokens = [NO_TOKEN] * len(sequences)
        rows = []
        for row, bad in enumerate((~torch.isfinite(logits)).sum(1).tolist()):
            if bad:
                where = sequences[row].where
                sequences[row].error = _not_finite(f"{where}: {bad} of {logits.shape[1]} logits are")
            else:
                rows.append(row)
        if not rows:
            return tokens
        if len(rows) < len(sequences):
            logits = logits[rows]
        chosen = choose_tokens(logits, [sequences[row] for row in rows], self._sample)
        for row, row_logits, token in zip(rows, logits, chosen, strict=True):
            tokens[row] = token
            top, logprobs = sequences[row].params.logprobs, sequences[row].logprobs
            if top is not None and logprobs is not None:
                logprobs.append(token_logprobs(row_logits, token, top))
        return tokens

    def _postprocess(self, made: Iterable[tuple[Sequence, int]]) -> list[Output]:
        """Appends the tokens. A sequence that continues after its first token joins the steps."""
        outputs = []
        for sequence, token in made:
            piece = self._append(sequence, token)
            outputs.append((sequence, piece, sequence.finished))
            if sequence.row < 0 and not sequence.finished:
                self._batch.add(sequence)
        return outputs

    def _append(self, sequence: Sequence, token: int) -> str:
        """Appends a token and returns the new text.

        The only place where a sequence ends by itself: an error, a stop id, its length, a stop string.
        """
        if token == NO_TOKEN:
            if sequence.scoring is None and sequence.error is None:
                sequence.error = _not_finite(f"{sequence.where}: a logit is")
            self._end(sequence, "length" if sequence.error is None else "error")
            return ""
        sequence.token_ids.append(token)
        self._meter.generated_tokens += 1
        reason: FinishReason | None = None
        if token in sequence.stop_ids:
            reason, sequence.stop_reason = "stop", token
        elif len(sequence.token_ids) == sequence.max_tokens:
            reason = "length"
        piece, text = "", sequence.text
        if text is not None:
            piece = text.push(None if reason == "stop" else token, reason is not None)
            if text.matched is not None:
                reason, sequence.stop_reason = "stop", text.matched
        if reason is not None:
            self._end(sequence, reason)
        return piece

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        if sequence.row >= 0:
            self._batch.drop(sequence)
        sequence.finish_reason = reason  # before it counts as finished
        self._scheduler.finish(sequence)
        if sequence.swapped is not None:
            self.cache.forget(sequence.swapped)
        sequence.shaping = sequence.swapped = sequence.speculation = None


def _piece(piece: Piece, last: dict[Sequence, Tensor]) -> PromptPiece:
    """The piece as the runner takes it. Its logits go to the scoring, or if it ends a prompt, those of the end to `last`."""
    sequence = piece.sequence
    ids = sequence.prompt_ids[piece.begin : piece.end]
    if sequence.scoring is not None:
        return PromptPiece(ids, sequence, sequence.scoring.first, sequence.scoring.take)

    def take(_: int, logits: Tensor) -> None:
        last[sequence] = logits

    return PromptPiece(ids, sequence, len(sequence.prompt_ids) - 1, take)


def _not_finite(what: str) -> BaizeError:
    return BaizeError(f"{what} not finite; the weights are damaged or their values leave this dtype's range")
