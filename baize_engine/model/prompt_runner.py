"""Runs prompts: their buffers and plans, and the logits of the positions that a caller asks for.

A prompt runs in pieces that end at absolute multiples of the cache's chunk, so that a token's bits do not depend on how much
was cached before, or on where the caller cuts. Knows block numbers and lengths of sequences; not who owns the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor

from baize_engine.model.buffers import CachedTokens, Inputs, aligned_rows, cache_slots
from baize_engine.model.graphs import runs_ahead_on
from baize_engine.model.kv_cache import BLOCK_SIZE, KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.mirrored import Mirrored, mirrored_now
from baize_engine.model.short_prompts import FEWEST, MOST, ShortPrompts

MAX_PLANS = 64  # plans kept, one for each number of tokens and of pieces; there are many of both
# The most tokens of a piece. A GPU's products need more rows to be bound by arithmetic.
PREFILL_CHUNK = 256
GPU_PREFILL_CHUNK = 2048
# With ranks, whose sums of all are in memory at once: of 8 ranks of 65B they take 128 MiB. One number for any number of ranks,
# because a library's bits follow the number of rows.
SHARED_PREFILL_CHUNK = 512
# Positions whose logits are in memory at once: 128 x 32001 in float32 take 16 MB.
LOGIT_ROWS = 128


def new_cache(model: Llama, tokens: int, dtype: torch.dtype | None = None, prefill_chunk: int | None = None) -> KVCache:
    """A cache of `tokens` tokens for `model`.

    dtype: type of keys and values. Default: the model's activation type; only the CPU's ops accept another.
    prefill_chunk: tokens of a piece of a prompt. Default: `default_chunk`.

    The cache's chunk, at whose multiples pieces end and prefixes are shared, is one piece, so that the shapes of products
    depend on the prompt alone. It is one block if the ops are batch-invariant at any number of rows.
    """
    chunk = BLOCK_SIZE if model.ops.batch_invariant else prefill_chunk or default_chunk(model)
    cache = KVCache(model.config, -(-tokens // BLOCK_SIZE), BLOCK_SIZE, dtype or model.dtype, model.device, chunk)
    cache.lead(model.channel)
    return cache


def default_chunk(model: Llama) -> int:
    """The most tokens of a piece on the model's device."""
    if model.device == "cpu":
        return PREFILL_CHUNK
    return GPU_PREFILL_CHUNK if model.share is None else SHARED_PREFILL_CHUNK


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """New tokens `ids` of a prompt, after those that `sequence` has cached.

    take(position, logits): receives the logits (n, V) float32 of positions `position` to `position + n - 1`, for all new
    positions from `first` on, in order; it may keep the tensor. Positions count from the beginning of the prompt.
    """

    ids: list[int]
    sequence: CachedTokens
    first: int
    take: Callable[[int, Tensor], None]


class PromptRunner(Mirrored):
    """Runs prompts of `model` over `cache`. A sequence's blocks must have room for the new tokens (else ValueError).

    prefill_chunk: the most tokens of a piece. Default: `default_chunk`.
    runs_ahead: whether short pieces run as CUDA graphs, which the host queues without waiting. Default: true on a GPU.
    """

    mirror_name = "prompts"

    def __init__(
        self, model: Llama, cache: KVCache, *, prefill_chunk: int | None = None, runs_ahead: bool | None = None
    ) -> None:
        self.model, self.cache = model, cache
        self.prefill_chunk = prefill_chunk or default_chunk(model)
        self.together = model.ops.batch_invariant  # whether pieces of several prompts may run at once
        self.runs_ahead = runs_ahead_on(model.device) if runs_ahead is None else runs_ahead
        self._plans: dict[tuple[int, int, bool, bool], list[Callable[[], object]]] = {}
        self._short: ShortPrompts | None = None
        self._rows = self._sequences = 0  # capacity of the buffers
        self._takes: list[Callable[[int, Tensor], None]] = []  # of the pieces that run
        self.lead(model.channel)

    def prefill(self, ids: list[int], sequence: CachedTokens) -> Tensor:
        """Runs the prompt tokens `ids` after those that the sequence has cached, and advances the sequence.

        Returns the logits (1, V) float32 of the last token. ValueError if `ids` is empty, or exceeds the model's positions
        or the sequence's blocks.
        """
        last: list[Tensor] = []
        self.prefill_logits(ids, sequence, sequence.num_cached + len(ids) - 1, lambda _, logits: last.append(logits))
        if not last:
            raise ValueError("ids is empty, wanted at least one token")
        return last[0]

    def prefill_logits(
        self, ids: list[int], sequence: CachedTokens, first: int, take: Callable[[int, Tensor], None]
    ) -> None:
        """`prefill` with the logits of every position from `first` on, passed in order to `take`, as PromptPiece says.

        The logits' bits depend neither on where pieces begin nor on `first`; the last position's equal those of `prefill`.
        """
        for piece in self._pieces(ids, sequence):
            self.run([PromptPiece(piece, sequence, first, take)])

    def run(self, pieces: Sequence[PromptPiece]) -> None:
        """Runs pieces of prompts at once, and advances their sequences.

        Each must end at a multiple of the cache's chunk or with its prompt, and together they have at most `prefill_chunk`
        tokens. Several need ops whose rows do not depend on each other (`together`), and then have the bits of each alone.
        ValueError, also if a sequence lacks positions or blocks, leaves the sequences unchanged. At most LOGIT_ROWS positions
        have logits in memory at once, unless `take` keeps them.
        """
        if len(pieces) > 1 and not self.together:
            raise ValueError(f"{len(pieces)} pieces at once, wanted one: the ops' rows depend on each other")
        ids, sequences = [piece.ids for piece in pieces], [piece.sequence for piece in pieces]
        self._check(ids, sequences)
        self._takes = [piece.take for piece in pieces]
        try:
            self.compute(ids, sequences, [piece.first for piece in pieces])
        finally:
            self._takes = []

    @mirrored_now
    @torch.inference_mode()
    def compute(self, ids: list[list[int]], sequences: Sequence[CachedTokens], firsts: Sequence[int]) -> None:
        """`run` of pieces that were checked, on any rank."""
        wanted: list[tuple[int, int, int]] = []  # of each position that needs logits: its piece, itself, its row
        rows = 0
        for number, (tokens, sequence, first) in enumerate(zip(ids, sequences, firsts, strict=True)):
            begin = sequence.num_cached
            end = begin + len(tokens)
            wanted += [(number, position, rows + position - begin) for position in range(max(first, begin), end)]
            rows += len(tokens)
        short = self._short_for(ids[0]) if len(ids) == 1 else None
        if short is None:
            self._run(ids, sequences, prompt=True)
            hidden = self._work.x
        else:
            logits, hidden = short.run(ids[0], sequences[0]), short.hidden
            if len(wanted) == 1:
                self._take(0, wanted[0][1], logits)
                return
        for begin in range(0, len(wanted), LOGIT_ROWS):
            batch = wanted[begin : begin + LOGIT_ROWS]
            logits = self._logits(_select(hidden, [row for _, _, row in batch]), batch_invariant=True)
            for number, same in groupby(batch, key=itemgetter(0)):
                positions = [position for _, position, _ in same]
                self._take(number, positions[0], logits[: len(positions)])
                logits = logits[len(positions) :]

    def _take(self, piece: int, position: int, logits: Tensor) -> None:
        """Passes logits to who asked for them; other ranks than 0 have none."""
        if self._takes:
            self._takes[piece](position, logits)

    @torch.inference_mode()
    def forward(
        self,
        token_ids: list[list[int]],
        sequences: Sequence[CachedTokens],
        all_logits: bool = False,
        prompt: bool = False,
    ) -> Tensor:
        """Runs new tokens of S sequences at once, each after those that its sequence has cached, and advances the sequences.

        token_ids: one list per sequence, none empty; T tokens in all.
        all_logits: return the logits of every token, (T, V) float32, instead of each sequence's last, (S, V).
        prompt: the tokens belong to prompts, so that activations may be rounded (see Llama).

        ValueError leaves the sequences unchanged. With one token per sequence, a sequence's results do not depend on the
        others, bit for bit; with more they may, unless the ops are batch-invariant (`together`).
        """
        if self.model.channel is not None:
            raise ValueError("forward runs on one rank only, wanted run")
        self._check(token_ids, sequences)
        self._run(token_ids, sequences, prompt)
        rows, count = sum(len(ids) for ids in token_ids), len(token_ids)
        hidden = self._work.x[:rows]
        if not all_logits and rows > count:
            hidden = hidden[(self._inputs.query_starts[1 : count + 1] - 1).long()]
        return self._logits(hidden, batch_invariant=hidden.shape[0] == count)

    def _pieces(self, ids: list[int], sequence: CachedTokens) -> Iterator[list[int]]:
        """Cuts `ids` into pieces. Each must have run before the next is requested."""
        begin = 0
        while begin < len(ids):
            cached, chunk = sequence.num_cached, self.cache.chunk
            end = min(len(ids), begin + (cached + self.prefill_chunk) // chunk * chunk - cached)
            yield ids[begin:end]
            begin = end

    def _short_for(self, piece: list[int]) -> ShortPrompts | None:
        """The graphs that run this piece in one launch, or None if it is too long, or too short, or runs without graphs."""
        if not self.runs_ahead or not FEWEST <= len(piece) <= MOST:
            return None
        if self._short is None:
            with torch.inference_mode():
                self._short = ShortPrompts(self.model, self.cache)
        return self._short

    def _check(self, token_ids: Sequence[list[int]], sequences: Sequence[CachedTokens]) -> None:
        """ValueError unless each sequence has new tokens, and positions and blocks for them."""
        if len(token_ids) != len(sequences) or not token_ids or not all(token_ids):
            raise ValueError(
                f"{len(token_ids)} lists of new tokens for {len(sequences)} sequences, wanted one each, not empty"
            )
        most = self.model.config.max_position_embeddings
        for ids, sequence in zip(token_ids, sequences, strict=True):
            end, room = sequence.num_cached + len(ids), len(sequence.block_table) * self.cache.block_size
            if end > most:
                raise ValueError(f"a sequence would have {end} tokens, wanted at most {most} (max_position_embeddings)")
            if end > room:
                raise ValueError(
                    f"a sequence would have {end} tokens, wanted at most {room}, for which its blocks have room"
                )

    def _run(self, token_ids: Sequence[list[int]], sequences: Sequence[CachedTokens], prompt: bool) -> None:
        """Computes the new tokens: hidden states in `self._work.x`, keys and values in the cache."""
        counts = [len(ids) for ids in token_ids]
        self._grow(sum(counts), len(counts))
        self._set_inputs(token_ids, sequences)
        for op in self._plan(sum(counts), len(counts), max(counts) == 1, prompt):
            op()
        for sequence, count in zip(sequences, counts, strict=True):
            sequence.num_cached += count

    def _logits(self, hidden: Tensor, batch_invariant: bool) -> Tensor:
        """Logits (T, V) float32 of hidden states (T, H)."""
        model = self.model
        logits = torch.empty(hidden.shape[0], model.config.vocab_size, dtype=torch.float32, device=model.device)
        for op in model.ops.compile(model.head_ops(hidden, logits, batch_invariant=batch_invariant)):
            op()
        return logits

    def _grow(self, rows: int, sequences: int) -> None:
        """Makes room in the buffers for that many tokens and sequences. They never shrink."""
        if rows <= self._rows and sequences <= self._sequences:
            return
        self._rows = max(rows, self._rows, min(2 * self._rows, self.prefill_chunk))
        if sequences > self._sequences:
            self._sequences = max(sequences, 2 * self._sequences)
        model, device = self.model, self.model.device
        blocks = -(-model.config.max_position_embeddings // self.cache.block_size)
        self._work = model.activations(self._rows)
        self._index = aligned_rows(3, self._rows, torch.int64, device)
        ids, positions, slots = self._index
        self._inputs = Inputs(
            ids,
            positions,
            slots,
            block_tables=torch.zeros(self._sequences, blocks, dtype=torch.int32, device=device),
            query_starts=torch.zeros(self._sequences + 1, dtype=torch.int32, device=device),
            context_lens=torch.zeros(self._sequences, dtype=torch.int32, device=device),
            max_context=model.config.max_position_embeddings,
        )
        self._plans.clear()

    def _set_inputs(self, token_ids: Sequence[list[int]], sequences: Sequence[CachedTokens]) -> None:
        """Writes the tokens, their positions, cache rows and block tables to the plan's inputs."""
        positions: list[int] = []
        slots: list[int] = []
        starts, lens, inputs = [0], [], self._inputs
        for number, (ids, sequence) in enumerate(zip(token_ids, sequences, strict=True)):
            begin, end = sequence.num_cached, sequence.num_cached + len(ids)
            positions += range(begin, end)
            slots += cache_slots(sequence.block_table, self.cache.block_size, begin, end)
            starts.append(starts[-1] + len(ids))
            lens.append(end)
            inputs.block_tables[number, : len(sequence.block_table)] = torch.tensor(
                sequence.block_table, dtype=torch.int32
            )
        tokens = [token for ids in token_ids for token in ids]
        self._index[:, : len(tokens)] = torch.tensor([tokens, positions, slots])
        inputs.query_starts[: len(starts)] = torch.tensor(starts, dtype=torch.int32)
        inputs.context_lens[: len(lens)] = torch.tensor(lens, dtype=torch.int32)

    def _plan(self, rows: int, sequences: int, batch_invariant: bool, prompt: bool) -> list[Callable[[], object]]:
        """The calls of a run of this shape. They depend on no value of the inputs, and are made once."""
        key = (rows, sequences, batch_invariant, prompt)
        if key not in self._plans:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            bound = rows if rows > sequences else self.model.config.max_position_embeddings
            inputs = self._inputs.first(rows, sequences, bound)
            plan = self.model.hidden_ops(
                self._work.first(rows), inputs, self.cache, batch_invariant=batch_invariant, prompt=prompt
            )
            self._plans[key] = self.model.ops.compile(plan)
        return self._plans[key]


def _select(hidden: Tensor, rows: list[int]) -> Tensor:
    """These rows of `hidden`; a view if they are adjacent, because an index from the host is a copy that a GPU waits for."""
    adjacent = rows[-1] - rows[0] == len(rows) - 1
    return hidden[rows[0] : rows[-1] + 1] if adjacent else hidden[rows]
