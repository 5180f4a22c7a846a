"""The buffers of verification steps: steps in which a sequence has rows for its last token and for draft tokens after it.

Every row is computed as a decode step computes its only token, and sampled by its own position's random number: the tokens
chosen are those of plain decoding as long as all tokens before them are. The host sets all inputs of a step. Knows token ids
and blocks; not where draft tokens come from, nor which are accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from baize_engine.backend.choose import best_blocks
from baize_engine.backend.plan_ops import PlanOp, Sample
from baize_engine.model import graphs
from baize_engine.model.buffers import Inputs, aligned_rows, cache_slots, write
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.mirrored import Mirrored, mirrored_now
from baize_engine.model.step_state import Stepping, context_bucket


class VerifyState(Mirrored):
    """The buffers and plans of verification steps of up to `rows` rows over one cache.

    Where the ops are batch-invariant, a sequence's rows are queries of one sequence to attention, which then reads its keys and
    values once. Elsewhere several queries are a prompt to it, whose order of summation is another: there each row is a
    sequence of its own, with a copy of the block table. On a GPU a step is a graph, one per number of rows, rounded up to a
    power of two, and bound of the contexts: which sequence a row belongs to is an input.
    """

    mirror_name = "verification"

    def __init__(self, model: Llama, cache: KVCache, rows: int) -> None:
        self.rows, self.cache, self.model, device = rows, cache, model, model.device
        self._grouped = model.ops.batch_invariant
        blocks = -(-model.config.max_position_embeddings // cache.block_size)
        self._wide = aligned_rows(6, rows, torch.int64, device)  # ids, positions, slots, top_k, seeds, sample_index
        self._sampling = aligned_rows(3, rows, torch.float32, device)  # temperature, top_p, min_p
        self._lens = aligned_rows(3, rows + 1, torch.int32, device)  # of rows, of attention's sequences; query_starts
        self._tables = torch.zeros(rows, blocks, dtype=torch.int32, device=device)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        vocabulary = model.config.vocab_size
        self.logits = torch.empty(rows, vocabulary, dtype=torch.float32, device=device)
        self._best = torch.zeros(rows, best_blocks(vocabulary), dtype=torch.int32, device=device)
        self._work = model.activations(rows)
        self._parts = model.logit_parts(rows)
        self._plans: dict[tuple[int, int, int], list[Callable[[], object]]] = {}
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.lead(model.channel)

    @mirrored_now
    @torch.inference_mode()
    def run(self, sequences: Sequence[Stepping], drafts: Sequence[Sequence[int]]) -> Tensor:
        """Queues a step of the last token of each sequence and its draft tokens; their blocks must be reserved.

        Returns the tokens chosen (T,) int64, in the order of the sequences and their tokens; `logits` has the same rows. Both
        are overwritten by the next run.
        """
        rows = sum(1 + len(draft) for draft in drafts)
        if rows == len(drafts):
            raise ValueError("no sequence has draft tokens, wanted a decode step for these")
        if rows > self.rows:
            raise ValueError(f"sequences and draft tokens are {rows} rows, wanted at most {self.rows}")
        most = self.model.config.max_position_embeddings
        if self.logits.device.type != "cuda":
            self._set(sequences, drafts, rows)
            for op in self._plan(most, rows, len(sequences)):
                op()
            return self._tokens[:rows]
        longest = max(one.num_cached + 1 + len(draft) for one, draft in zip(sequences, drafts, strict=True))
        key = context_bucket(longest, most), min(1 << (rows - 1).bit_length(), self.rows)
        with torch.cuda.device(self.logits.device):
            if key not in self._graphs:
                self._set([], [], key[1])  # the first run, which compiles, has padding rows only
                plan = self._plan(*key, sequences=key[1])
                graphs.run_aside(plan, self.logits.device)
                self._graphs[key] = graphs.capture(plan, self.logits.device)
            self._set(sequences, drafts, key[1])
            self._graphs[key].replay()
        return self._tokens[:rows]

    def ops(self, max_context: int, rows: int, sequences: int) -> list[PlanOp]:
        """The ops of a step of `rows` rows of at most `sequences` sequences, for contexts of at most `max_context` tokens."""
        ids, positions, slots, top_k, seeds, sample_index = self._wide[:, :rows]
        temperature, top_p, min_p = self._sampling[:, :rows]
        lens, contexts, starts = self._lens
        count = sequences if self._grouped else rows
        inputs = Inputs(ids, positions, slots, self._tables[:count], starts[: count + 1], contexts[:count], max_context)
        work, logits, best = self._work.first(rows), self.logits[:rows], self._best[:rows]
        parts = None if self._parts is None else self._parts.first(rows)
        return [
            *self.model.hidden_ops(work, inputs, self.cache, batch_invariant=True),
            *self.model.head_ops(work.x, logits, batch_invariant=True, best=best, parts=parts),
            *self.model.choice_ops(
                Sample(
                    logits, temperature, top_k, top_p, min_p, seeds, sample_index, lens[:rows],
                    out=self._tokens[:rows], best=best,
                ),
            ),
        ]  # fmt: skip

    def _plan(self, max_context: int, rows: int, sequences: int) -> list[Callable[[], object]]:
        """The backend's calls for `ops`, made once for up to 1, 2, 4, ... sequences, some of which may have no query."""
        # fewer than rows: as many would mean one query each
        key = max_context, rows, min(1 << (sequences - 1).bit_length(), rows - 1)
        if key not in self._plans:
            self._plans[key] = self.model.ops.compile(self.ops(*key))
        return self._plans[key]

    def _set(self, sequences: Sequence[Stepping], drafts: Sequence[Sequence[int]], rows: int) -> None:
        """Queues the inputs of a run of `rows` rows; those after the sequences' are padding in the scrap block."""
        size, scrap = self.cache.block_size, self.cache.scrap_block
        ids, positions, slots = list[int](), list[int](), list[int]()
        owners = list[Stepping]()  # of each row
        tables, contexts, starts = list[list[int]](), list[int](), [0]  # of attention's sequences
        for one, draft in zip(sequences, drafts, strict=True):
            begin, end = one.num_cached, one.num_cached + 1 + len(draft)
            ids += [one.token_ids[-1], *draft]
            positions += range(begin, end)
            slots += cache_slots(one.block_table, size, begin, end)
            owners += [one] * (end - begin)
            for context in (end,) if self._grouped else range(begin + 1, end + 1):
                tables.append(one.block_table)
                contexts.append(context)
                starts.append(starts[-1] + (end - begin if self._grouped else 1))
        rest = [0] * (rows - len(ids))
        write(
            self._wide[:, :rows],
            [
                ids + rest, positions + rest, slots + [scrap * size] * len(rest),
                [one.params.top_k for one in owners] + rest, [one.seed for one in owners] + rest,
                [one.index for one in owners] + rest,
            ],
        )  # fmt: skip
        write(
            self._sampling[:, :rows],
            [
                [one.params.temperature for one in owners] + [0.0] * len(rest),
                [one.params.top_p for one in owners] + [0.0] * len(rest),
                [one.params.min_p for one in owners] + [0.0] * len(rest),
            ],
        )
        for _ in rest:  # none where sequences are grouped
            tables.append([scrap])
            contexts.append(1)
            starts.append(starts[-1] + 1)
        unused = rows - len(contexts)
        lens = [position + 1 for position in positions + rest]
        write(self._lens[:, : rows + 1], [[*lens, 0], [*contexts, *[0] * (unused + 1)], starts + [starts[-1]] * unused])
        longest = max(map(len, tables))
        write(self._tables[: len(tables), :longest], [t + [scrap] * (longest - len(t)) for t in tables])
