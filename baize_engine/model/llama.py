"""The decoder: a flat plan of ops over buffers that are made once, run for the new tokens of some sequences.

It appends to the cache, advances each sequence, and returns logits; text, sampling and scheduling are others' work.
`model/steps.py` runs the same plan many times without the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from baize_engine.model import names, short_prompts
from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import BLOCK_SIZE, KVCache, Sequence
from baize_engine.model.rope import tables

MAX_PLANS = 64  # shapes of steps remembered; a decode loop uses one, prefill one for each length of a last chunk
# Prompts are computed in pieces of at most so many tokens. A GPU needs more rows in a product to be busy with arithmetic.
# Pieces end at absolute multiples of the cache's chunk, by which equal beginnings of prompts are shared: a whole piece, so that
# the shapes of products are a prompt's own, or a block where a row's bits do not depend on the rows beside it (`ops.by_row`).
PREFILL_CHUNK = 256
GPU_PREFILL_CHUNK = 2048


def aligned_rows(count: int, length: int, dtype: torch.dtype, device: str) -> Tensor:
    """Zeros (count, length) whose rows begin at multiples of 16 bytes: where they do not, Triton compiles each kernel anew."""
    return torch.zeros(count, -(-length // 4) * 4, dtype=dtype, device=device)[:, :length]


class Llama:
    """A LLaMA of `config` over `weights` with the ops of a backend.

    `weights`: {transformers' name: matrix on `device`}, a matrix being a tensor or a quantised weight, with q, k, v and
    gate, up either apart or joined (names.JOINED). `ops` has the functions of kernels/reference.py as attributes, and
    may have `compile`, which makes one call of several steps of a plan, and `by_row`.
    Activations are float32 on the CPU and the embedding's type on a GPU, unless `activation` says otherwise. Where
    tokens of a prompt meet quantised weights, a backend may round them to 8 bits unless `exact_activations`; decode steps
    never do.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Any],
        ops: Any,
        device: str = "cpu",
        activation: torch.dtype | None = None,
        exact_activations: bool = False,
    ) -> None:
        self.config, self.weights, self.ops, self.device = config, weights, ops, device
        self.exact_activations = exact_activations
        self._by_row = getattr(ops, "by_row", False)
        self.compile: Callable[[list[partial[Any]]], Any] = getattr(ops, "compile", list)
        embedding = weights[names.EMBED]
        self.dtype = activation or (torch.float32 if embedding.device.type == "cpu" else embedding.dtype)
        self.runs_ahead = (
            embedding.device.type == "cuda"
        )  # whether steps and short prompts are graphs, ahead of the host
        self.prefill_chunk = PREFILL_CHUNK if embedding.device.type == "cpu" else GPU_PREFILL_CHUNK
        self.head = embedding if config.tie_word_embeddings else weights[names.HEAD]
        self._norms = {name: tensor.to(self.dtype) for name, tensor in weights.items() if name.endswith("norm.weight")}
        self._cos, self._sin = tables(config, config.max_position_embeddings, device)
        self._rows = self._sequences = 0  # what the buffers have room for
        self._plans: dict[tuple[int, int, bool, bool], list[Callable[[], Any]]] = {}
        self._planned_for: KVCache | None = None
        self._short: short_prompts.ShortPrompts | None = None

    def new_cache(self, tokens: int, dtype: torch.dtype | None = None) -> KVCache:
        """A cache for `tokens` tokens, in the activation type unless `dtype` is given, which a GPU's kernels do not take."""
        chunk = BLOCK_SIZE if self._by_row else self.prefill_chunk
        return KVCache(self.config, -(-tokens // BLOCK_SIZE), BLOCK_SIZE, dtype or self.dtype, self.device, chunk)

    def prefill(self, ids: list[int], sequence: Sequence, cache: KVCache) -> Tensor:
        """Runs the tokens `ids` of one sequence; logits (1, V) float32 of the last."""
        if not ids:
            raise ValueError("ids is empty, wanted at least one token")
        begin = 0
        while True:
            here = sequence.length
            end = min(len(ids), begin + (here + self.prefill_chunk) // cache.chunk * cache.chunk - here)
            piece = ids[begin:end]
            if self.runs_ahead and short_prompts.FEWEST <= len(piece) <= short_prompts.MOST:
                logits = self._run_short(piece, sequence, cache)
            else:
                logits = self.forward([piece], [sequence], cache, prompt=True)
            if end == len(ids):
                return logits
            begin = end

    @torch.inference_mode()
    def _run_short(self, ids: list[int], sequence: Sequence, cache: KVCache) -> Tensor:
        """`forward` of a short piece of a prompt as one launch, with its bits."""
        self._check([len(ids)], [sequence])
        cache.reserve(sequence, len(ids))
        if self._short is None or self._short.cache is not cache:
            self._short = short_prompts.ShortPrompts(self, cache)
        return self._short.run(ids, sequence)

    @torch.inference_mode()
    def forward(
        self,
        token_ids: list[list[int]],
        sequences: list[Sequence],
        cache: KVCache,
        all_logits: bool = False,
        prompt: bool = False,
    ) -> Tensor:
        """Runs the new tokens of each sequence after what it has cached; advances the sequences.

        Returns float32 logits (S, V) of each sequence's last token, or with `all_logits` (T, V) of every token. CacheFull
        or ValueError leave the sequences as they were. `prompt`: the tokens may be computed as prompts are, however many they
        are (the class says how). Steps of one token a sequence do not depend on the other
        sequences, bit for bit; prompts are to be run one sequence at a time (`prefill`).
        """
        counts = [len(ids) for ids in token_ids]
        self._check(counts, sequences)
        for sequence, count in zip(sequences, counts, strict=True):
            cache.reserve(sequence, count)
        rows, many = sum(counts), len(counts)
        self._make_room(rows, many)
        self._set_inputs(token_ids, sequences, cache)
        each_row = max(counts) == 1
        for step in self._plan(rows, many, cache, each_row, prompt):
            step()
        for sequence, count in zip(sequences, counts, strict=True):
            sequence.length += count
        hidden = self._x[:rows]
        if not all_logits and rows > many:
            hidden = hidden[(self._starts[1 : many + 1] - 1).long()]
        logits = torch.empty(hidden.shape[0], self.head.shape[0], dtype=torch.float32, device=self.device)
        return self.head_step(hidden, logits, each_row=hidden.shape[0] == many)()

    def head_step(self, hidden: Tensor, logits: Tensor, **options: Any) -> partial[Any]:
        """The op from hidden states (T, H) to `logits` (T, V) float32."""
        return partial(
            self.ops.head, hidden, self._norms[names.NORM], self.config.rms_norm_eps, self.head, out=logits, **options
        )

    def _check(self, counts: list[int], sequences: list[Sequence]) -> None:
        if len(counts) != len(sequences) or not counts or min(counts) == 0:
            raise ValueError(
                f"{len(counts)} lists of new tokens for {len(sequences)} sequences, wanted one each, not empty"
            )
        longest = max(s.length + count for s, count in zip(sequences, counts, strict=True))
        if longest > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence would have {longest} tokens, the model has {self.config.max_position_embeddings}"
            )

    def _make_room(self, rows: int, sequences: int) -> None:
        """Buffers for that many tokens and sequences, kept for all later steps; they grow to the largest step asked for."""
        if rows > self._rows:
            self._rows = max(rows, min(2 * self._rows, self.prefill_chunk))
            self._x = self.buffer(self._rows, self.config.hidden_size)
            self._scratch = self.scratch(self._rows)
            self._index = aligned_rows(3, self._rows, torch.int64, self.device)
            self._plans.clear()
        if sequences > self._sequences:
            self._sequences = max(sequences, 2 * self._sequences)
            most = -(-self.config.max_position_embeddings // BLOCK_SIZE)
            self._tables = torch.zeros(self._sequences, most, dtype=torch.int32, device=self.device)
            self._starts = torch.zeros(self._sequences + 1, dtype=torch.int32, device=self.device)
            self._lens = torch.zeros(self._sequences, dtype=torch.int32, device=self.device)
            self._plans.clear()

    def buffer(self, *shape: int) -> Tensor:
        """Unfilled activations."""
        return torch.empty(*shape, dtype=self.dtype, device=self.device)

    def scratch(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """What a layer writes for `rows` tokens beside x: queries, attention's output, and the MLP's inner values."""
        heads = (rows, self.config.num_heads, self.config.head_dim)
        return self.buffer(*heads), self.buffer(*heads), self.buffer(rows, self.config.intermediate_size)

    def _set_inputs(self, token_ids: list[list[int]], sequences: list[Sequence], cache: KVCache) -> None:
        """Writes a step's tokens, positions, cache rows and tables into the buffers that the plan reads."""
        positions: list[int] = []
        slots: list[int] = []
        starts, lens = [0], []
        for number, (ids, sequence) in enumerate(zip(token_ids, sequences, strict=True)):
            end = sequence.length + len(ids)
            positions += range(sequence.length, end)
            slots += cache.slots(sequence, sequence.length, end)
            starts.append(starts[-1] + len(ids))
            lens.append(end)
            self._tables[number, : len(sequence.blocks)] = torch.tensor(sequence.blocks, dtype=torch.int32)
        tokens = [token for ids in token_ids for token in ids]
        self._index[:, : len(tokens)] = torch.tensor([tokens, positions, slots])
        self._starts[: len(starts)] = torch.tensor(starts, dtype=torch.int32)
        self._lens[: len(lens)] = torch.tensor(lens, dtype=torch.int32)

    def _plan(self, rows: int, sequences: int, cache: KVCache, each_row: bool, prompt: bool) -> list[Callable[[], Any]]:
        """The step as a flat list of ops over buffers, made once for a shape: it depends on no value but the cache's place."""
        key = (rows, sequences, each_row, prompt)
        if self._planned_for is not cache:  # held, so that no other cache can come to lie at its address
            self._planned_for = cache
            self._plans.clear()
        if key not in self._plans:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            tokens, positions, slots = self._index[:, :rows]
            places = (self._tables[:sequences], self._starts[: sequences + 1], self._lens[:sequences])
            scratch = tuple(buffer[:rows] for buffer in self._scratch)
            self._plans[key] = self.compile(
                self.make_plan(
                    self._x[:rows], scratch, tokens, positions, slots, places, cache, each_row, prompt=prompt
                )
            )
        return self._plans[key]

    def make_plan(
        self,
        x: Tensor,
        scratch: tuple[Tensor, ...],
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        places: tuple[Tensor, Tensor, Tensor],
        cache: KVCache,
        each_row: bool,
        longest: int | None = None,
        prompt: bool = False,
    ) -> list[partial[Any]]:
        """The ops from `tokens` (T,) to the hidden states x (T, H) before the last norm.

        `places`: block tables (S, most), starts (S + 1,) and lens (S,) of the sequences, int32. `longest` bounds the lens
        where each sequence has one token; the config's positions unless given.
        """
        ops, config, eps = self.ops, self.config, self.config.rms_norm_eps
        q, mixed, inner = scratch
        rows, many = x.shape[0], places[2].shape[0]
        bound = rows if rows > many else longest or config.max_position_embeddings
        turn = (self._cos, self._sin, positions)
        how = {"each_row": each_row, "coarse": prompt and not self.exact_activations}
        plan: list[partial[Any]] = [partial(ops.embed, tokens, self.weights[names.EMBED], out=x)]
        for number in range(config.num_layers):
            keys, values = cache.keys[number], cache.values[number]
            norm, qkv = self._norm(number, names.ATTENTION_NORM), self._joined(number, names.QKV)
            plan += [
                partial(ops.qkv_rope_store, x, norm, eps, qkv, *turn, keys, values, slots, q=q, **how),
                partial(ops.attention, q, keys, values, *places, config.head_dim**-0.5, out=mixed, longest=bound),
                partial(ops.linear_add, mixed.flatten(1), self._matrix(number, names.O), out=x, **how),
            ]
            norm, gate_up = self._norm(number, names.MLP_NORM), self._joined(number, names.GATE_UP)
            plan += [
                partial(ops.gate_up, x, norm, eps, gate_up, out=inner, **how),
                partial(ops.linear_add, inner, self._matrix(number, names.DOWN), out=x, **how),
            ]
        return plan

    def _norm(self, number: int, part: str) -> Tensor:
        return self._norms[names.layer(number, part)]

    def _matrix(self, number: int, part: str) -> Any:
        return self.weights[names.layer(number, part)]

    def _joined(self, number: int, part: str) -> tuple[Any, ...]:
        """The joined matrix, or the matrices that would be joined."""
        whole = self.weights.get(names.layer(number, part))
        return (whole,) if whole is not None else tuple(self._matrix(number, each) for each in names.JOINED[part])
