"""Prompts: the buffers of their tokens, the plans over them, and the logits of the positions that are asked for.

A prompt runs in pieces. Pieces end at absolute multiples of the cache's chunk, so that a token's bits do not depend on what was
cached before it, or on where the caller cuts. Knows block numbers and lengths of sequences; not whose blocks they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from baize_engine.model.buffers import Activations, CachedTokens, Inputs, aligned_rows, cache_slots
from baize_engine.model.graphs import runs_ahead_on
from baize_engine.model.kv_cache import BLOCK_SIZE, KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.short_prompts import FEWEST, MOST, ShortPrompts

MAX_PLANS = 64  # shapes of pieces remembered: one for each length of a last piece
# Prompts are computed in pieces of at most so many tokens. A GPU needs more rows in a product to be busy with arithmetic.
PREFILL_CHUNK = 256
GPU_PREFILL_CHUNK = 2048
# Positions whose logits exist at a time: 128 x 32001 in float32 are 16 MB.
LOGIT_ROWS = 128


def new_cache(model: Llama, tokens: int, dtype: torch.dtype | None = None, prefill_chunk: int | None = None) -> KVCache:
    """A cache of `tokens` tokens for `model`, of its activation type unless `dtype` is given, which only the CPU's ops take.

    Its chunk, by which equal beginnings of prompts are shared and at whose multiples pieces end, is a whole piece, so that
    the shapes of products are a prompt's own; or a block, where the ops are batch-invariant at any number of rows.
    """
    chunk = BLOCK_SIZE if model.ops.batch_invariant else prefill_chunk or default_chunk(model)
    return KVCache(model.config, -(-tokens // BLOCK_SIZE), BLOCK_SIZE, dtype or model.dtype, model.device, chunk)


def default_chunk(model: Llama) -> int:
    """Tokens of a piece on the model's device."""
    return PREFILL_CHUNK if model.device == "cpu" else GPU_PREFILL_CHUNK


class PromptRunner:
    """Runs prompts of `model` over `cache`. The sequences' blocks must have room for the tokens that they are given.

    `prefill_chunk`: tokens of a piece at most. `runs_ahead`: whether short pieces are CUDA graphs, which the host queues
    without waiting; on a GPU they are.
    """

    def __init__(
        self, model: Llama, cache: KVCache, *, prefill_chunk: int | None = None, runs_ahead: bool | None = None
    ) -> None:
        self.model, self.cache = model, cache
        self.prefill_chunk = prefill_chunk or default_chunk(model)
        self.runs_ahead = runs_ahead_on(model.device) if runs_ahead is None else runs_ahead
        self._plans: dict[tuple[int, int, bool, bool], list[Callable[[], object]]] = {}
        self._short: ShortPrompts | None = None
        self._rows = self._sequences = 0  # what the buffers have room for

    def prefill(self, ids: list[int], sequence: CachedTokens) -> Tensor:
        """Runs the tokens `ids` of a prompt after those that the sequence has cached; logits (1, V) float32 of the last."""
        logits: Tensor | None = None
        for piece in self._pieces(ids, sequence):
            short = self._short_for(piece)
            logits = short.run(piece, sequence) if short else self.forward([piece], [sequence], prompt=True)
        if logits is None:
            raise ValueError("ids is empty, wanted at least one token")
        return logits

    @torch.inference_mode()
    def prefill_logits(
        self, ids: list[int], sequence: CachedTokens, first: int, take: Callable[[int, Tensor], None]
    ) -> None:
        """As `prefill`, with the logits of all positions from `first` on: take(position, logits (n, V) float32), in order.

        Positions count from the beginning of the prompt; those before `first` are computed without logits. n is at most
        LOGIT_ROWS. A position's logits have the same bits wherever pieces begin and whatever `first` is, those of the last
        the bits that `prefill` gives. `take` may keep its tensor.
        """
        for piece in self._pieces(ids, sequence):
            begin, short = sequence.num_cached, self._short_for(piece)
            if short:
                short.run(piece, sequence)
                hidden = short.hidden[: len(piece)]
            else:
                self._run([piece], [sequence], prompt=True)
                hidden = self._work.x[: len(piece)]
            for row in range(max(first - begin, 0), len(piece), LOGIT_ROWS):
                take(begin + row, self._logits(hidden[row : row + LOGIT_ROWS], batch_invariant=True))

    @torch.inference_mode()
    def forward(
        self,
        token_ids: list[list[int]],
        sequences: Sequence[CachedTokens],
        all_logits: bool = False,
        prompt: bool = False,
    ) -> Tensor:
        """Runs new tokens of several sequences at once, each after those that it has cached; advances the sequences.

        Returns float32 logits (S, V) of each sequence's last token, or with `all_logits` (T, V) of every token. ValueError
        leaves the sequences as they were. `prompt`: the tokens may be computed as prompts are (Llama says how), however
        many they are. Steps of one token a sequence do not depend on the other sequences, bit for bit; prompts are to be
        run one sequence at a time (`prefill`).
        """
        self._run(token_ids, sequences, prompt)
        rows, many = sum(len(ids) for ids in token_ids), len(token_ids)
        hidden = self._work.x[:rows]
        if not all_logits and rows > many:
            hidden = hidden[(self._inputs.query_starts[1 : many + 1] - 1).long()]
        return self._logits(hidden, batch_invariant=hidden.shape[0] == many)

    def _pieces(self, ids: list[int], sequence: CachedTokens) -> Iterator[list[int]]:
        """`ids` cut where pieces end, each to be run before the next is asked for."""
        begin = 0
        while begin < len(ids):
            here, chunk = sequence.num_cached, self.cache.chunk
            end = min(len(ids), begin + (here + self.prefill_chunk) // chunk * chunk - here)
            self._check([ids[begin:end]], [sequence])
            yield ids[begin:end]
            begin = end

    def _short_for(self, piece: list[int]) -> ShortPrompts | None:
        """The graphs that run this piece as one launch, where there are such."""
        if not self.runs_ahead or not FEWEST <= len(piece) <= MOST:
            return None
        if self._short is None:
            with torch.inference_mode():
                self._short = ShortPrompts(self.model, self.cache)
        return self._short

    def _check(self, token_ids: Sequence[list[int]], sequences: Sequence[CachedTokens]) -> None:
        """ValueError unless each sequence has new tokens, positions and blocks for them."""
        if len(token_ids) != len(sequences) or not token_ids or not all(token_ids):
            raise ValueError(
                f"{len(token_ids)} lists of new tokens for {len(sequences)} sequences, wanted one each, not empty"
            )
        most = self.model.config.max_position_embeddings
        for ids, sequence in zip(token_ids, sequences, strict=True):
            end, room = sequence.num_cached + len(ids), len(sequence.block_table) * self.cache.block_size
            if end > most:
                raise ValueError(f"a sequence would have {end} tokens, the model has {most}")
            if end > room:
                raise ValueError(f"a sequence would have {end} tokens, its blocks have room for {room}")

    def _run(self, token_ids: Sequence[list[int]], sequences: Sequence[CachedTokens], prompt: bool) -> None:
        """Leaves the hidden states of the new tokens in the buffers and their keys and values in the cache."""
        self._check(token_ids, sequences)
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
        logits = torch.empty(hidden.shape[0], model.head.shape[0], dtype=torch.float32, device=model.device)
        for op in model.ops.compile([model.head_op(hidden, logits, batch_invariant=batch_invariant)]):
            op()
        return logits

    def _grow(self, rows: int, sequences: int) -> None:
        """Buffers for that many tokens and sequences, kept for all later runs."""
        if rows <= self._rows and sequences <= self._sequences:
            return
        self._rows = max(rows, self._rows, min(2 * self._rows, self.prefill_chunk))
        self._sequences = max(sequences, self._sequences)
        model, device = self.model, self.model.device
        blocks = -(-model.config.max_position_embeddings // self.cache.block_size)
        self._work = Activations.of(model.config, self._rows, model.dtype, device)
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
        """Writes the tokens, their positions and cache rows, and the block tables where the plan reads them."""
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
        """The calls of a run of this shape, made once: they depend on no value of the inputs."""
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
