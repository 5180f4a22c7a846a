"""The decoder: a flat plan of ops over buffers that are made once, run for the new tokens of some sequences.

It appends to the cache, advances each sequence, and returns logits; text, sampling and scheduling are others' work.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import BLOCK_SIZE, KVCache, Sequence
from baize_engine.model.rope import tables

MAX_PLANS = 64  # shapes of steps remembered; a decode loop uses one, prefill one for each length of a last chunk
PREFILL_CHUNK = 256  # prompts are computed in pieces that end at multiples of this, whoever else is in the batch


class Llama:
    """A LLaMA of `config` over `weights` ({transformers' name: tensor} on `device`) with the ops of a backend.

    `ops` has the functions of kernels/reference.py as attributes. Activations are float32 on the CPU and the weights'
    type on a GPU.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], ops: Any, device: str = "cpu") -> None:
        self.config, self.weights, self.ops, self.device = config, weights, ops, device
        embedding = weights[names.EMBED]
        self.dtype = torch.float32 if embedding.device.type == "cpu" else embedding.dtype
        self._head = embedding if config.tie_word_embeddings else weights[names.HEAD]
        self._cos, self._sin = tables(config, config.max_position_embeddings, device)
        self._rows = self._sequences = 0  # what the buffers have room for
        self._plans: dict[tuple[int, int, bool], list[partial[Any]]] = {}
        self._planned_for: KVCache | None = None

    def new_cache(self, tokens: int) -> KVCache:
        """A cache for `tokens` tokens, in the activation type."""
        return KVCache(self.config, -(-tokens // BLOCK_SIZE), BLOCK_SIZE, self.dtype, self.device)

    def prefill(self, ids: list[int], sequence: Sequence, cache: KVCache) -> Tensor:
        """Runs the tokens `ids` of one sequence; logits (1, V) float32 of the last."""
        if not ids:
            raise ValueError("ids is empty, wanted at least one token")
        begin = 0
        while True:
            here = sequence.length
            end = min(len(ids), begin + PREFILL_CHUNK - here % PREFILL_CHUNK)
            logits = self.forward([ids[begin:end]], [sequence], cache)
            if end == len(ids):
                return logits
            begin = end

    @torch.inference_mode()
    def forward(
        self, token_ids: list[list[int]], sequences: list[Sequence], cache: KVCache, all_logits: bool = False
    ) -> Tensor:
        """Runs the new tokens of each sequence after what it has cached; advances the sequences.

        Returns float32 logits (S, V) of each sequence's last token, or with `all_logits` (T, V) of every token. CacheFull
        or ValueError leave the sequences as they were. Steps of one token a sequence do not depend on the other
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
        for step in self._plan(rows, many, cache, each_row):
            step()
        for sequence, count in zip(sequences, counts, strict=True):
            sequence.length += count
        hidden = self._normed[:rows]
        if not all_logits and rows > many:
            hidden = hidden[(self._starts[1 : many + 1] - 1).long()]
        return self.ops.linear(hidden, self._head, each_row=hidden.shape[0] == many).float()

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
        config = self.config
        if rows > self._rows:
            self._rows = max(rows, min(2 * self._rows, PREFILL_CHUNK))
            heads, kv, dim = config.num_heads, config.num_kv_heads, config.head_dim

            def buffer(*shape: int) -> Tensor:
                return torch.empty(self._rows, *shape, dtype=self.dtype, device=self.device)

            self._x, self._normed, self._delta = (buffer(config.hidden_size) for _ in range(3))
            self._q, self._mixed = buffer(heads, dim), buffer(heads, dim)
            self._k, self._v = buffer(kv, dim), buffer(kv, dim)
            self._gate, self._up = buffer(config.intermediate_size), buffer(config.intermediate_size)
            self._index = torch.empty(3, self._rows, dtype=torch.int64, device=self.device)
            self._plans.clear()
        if sequences > self._sequences:
            self._sequences = max(sequences, 2 * self._sequences)
            most = -(-config.max_position_embeddings // BLOCK_SIZE)
            self._tables = torch.zeros(self._sequences, most, dtype=torch.int32, device=self.device)
            self._starts = torch.zeros(self._sequences + 1, dtype=torch.int32, device=self.device)
            self._lens = torch.zeros(self._sequences, dtype=torch.int32, device=self.device)
            self._plans.clear()

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

    def _plan(self, rows: int, sequences: int, cache: KVCache, each_row: bool) -> list[partial[Any]]:
        """The step as a flat list of ops over buffers, made once for a shape: it depends on no value but the cache's place."""
        key = (rows, sequences, each_row)
        if self._planned_for is not cache:  # held, so that no other cache can come to lie at its address
            self._planned_for = cache
            self._plans.clear()
        if key not in self._plans:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[key] = self._make_plan(rows, sequences, cache, each_row)
        return self._plans[key]

    def _make_plan(self, rows: int, sequences: int, cache: KVCache, each_row: bool) -> list[partial[Any]]:
        ops, config = self.ops, self.config
        tokens, positions, slots = self._index[:, :rows]
        block_tables, starts, lens = self._tables[:sequences], self._starts[: sequences + 1], self._lens[:sequences]
        x, normed, delta = self._x[:rows], self._normed[:rows], self._delta[:rows]
        q, k, v, mixed = self._q[:rows], self._k[:rows], self._v[:rows], self._mixed[:rows]
        gate, up = self._gate[:rows], self._up[:rows]
        scale = config.head_dim**-0.5
        plan: list[partial[Any]] = [partial(ops.embed, tokens, self.weights[names.EMBED], out=x)]

        def norm(name: str) -> None:
            plan.append(partial(ops.rms_norm, x, self.weights[name], config.rms_norm_eps, out=normed))

        def linear(source: Tensor, name: str, target: Tensor) -> None:
            plan.append(partial(ops.linear, source, self.weights[name], out=target.flatten(1), each_row=each_row))

        def residual() -> None:
            plan.append(partial(ops.add, x, delta, out=x))

        for number in range(config.num_layers):
            keys, values = cache.keys[number], cache.values[number]
            norm(names.layer(number, names.ATTENTION_NORM))
            for part, target in ((names.Q, q), (names.K, k), (names.V, v)):
                linear(normed, names.layer(number, part), target)
            plan.append(partial(ops.rope_and_store, q, k, v, self._cos, self._sin, positions, keys, values, slots))
            plan.append(partial(ops.attention, q, keys, values, block_tables, starts, lens, scale, out=mixed))
            linear(mixed.flatten(1), names.layer(number, names.O), delta)
            residual()
            norm(names.layer(number, names.MLP_NORM))
            linear(normed, names.layer(number, names.GATE), gate)
            linear(normed, names.layer(number, names.UP), up)
            plan.append(partial(ops.silu_mul, gate, up, out=gate))
            linear(gate, names.layer(number, names.DOWN), delta)
            residual()
        norm(names.NORM)
        return plan
