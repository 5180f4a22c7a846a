"""Draft models that are watched: where they write, and how their proposals fare."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import decoders
import torch
from proposers import MOST, Answer, ask, engine_of

from baize_engine import Engine, SamplingParams
from baize_engine.generation.sequence import Sequence as Sample
from baize_engine.generation.speculation.draft_model import DraftModel
from baize_engine.generation.speculation.proposer import NOTHING, Prospect
from baize_engine.kernels import quantized
from baize_engine.model.buffers import cache_slots
from baize_engine.model.int4_form import int4_form
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama


class Watched(DraftModel):
    """Writes only where it may: to slots from the first token that it lacks, up to the last but one that it proposes."""

    def __init__(self, draft: Llama, cache: KVCache, shared: bool = False, rows: int = 64, most: int = MOST) -> None:
        own = cache
        if not shared:
            own = KVCache(draft.config, cache.num_blocks, cache.block_size, draft.dtype, draft.device)
        super().__init__(draft, own, 0.0, most, rows, shared=shared)
        self.cache, self.shared = own, shared
        self.proposed = self.accepted = self.moves = 0

    def propose(self, wanted: Sequence[tuple[Sample, int]]) -> list[list[int]]:
        cache = self.cache
        allowed = torch.zeros((cache.num_blocks + 1) * cache.block_size, dtype=torch.bool)
        allowed[cache.scrap_block * cache.block_size :] = True
        for sequence, count in wanted:
            begin, end = sequence.num_cached, sequence.num_cached + count
            if not self.shared:
                begin = 0 if sequence.speculation is None else sequence.speculation.num_cached
            allowed[cache_slots(sequence.block_table, cache.block_size, begin, end)] = True
        before = cache.keys.clone(), cache.values.clone()
        made = super().propose(wanted)
        for then, now in zip(before, (cache.keys, cache.values), strict=True):
            changed = (then.view(torch.uint8) != now.view(torch.uint8)).flatten(3).any(3).any(0).flatten()  # NaN, too
            assert not bool((changed & ~allowed).any())
        return made

    def verified(self, sequence: Sample, proposed: int, accepted: int) -> None:
        super().verified(sequence, proposed, accepted)
        self.proposed += proposed
        self.accepted += accepted

    def moved(self, sequence: Sample) -> None:
        super().moved(sequence)
        self.moves += 1


class Flipping(Watched):
    """Has the model's own weights, but changes a token of most proposals, and proposes nothing now and then.

    So a token is rejected if and only if it was changed, unless the draft has computed something wrong.
    """

    def __init__(self, draft: Llama, cache: KVCache, seed: int = 0) -> None:
        super().__init__(draft, cache)
        self._rng, self._wanted = random.Random(seed), dict[Sample, int]()

    def prospect(self, sequence: Sample) -> Prospect:
        return NOTHING if self._rng.random() < 0.4 else super().prospect(sequence)

    def propose(self, wanted: Sequence[tuple[Sample, int]]) -> list[list[int]]:
        made = super().propose(wanted)
        for (sequence, _), draft in zip(wanted, made, strict=True):
            self._wanted[sequence] = place = self._rng.randrange(len(draft) + 1)
            if place < len(draft):
                draft[place] = (draft[place] + 1) % 96
        return made

    def verified(self, sequence: Sample, proposed: int, accepted: int) -> None:
        super().verified(sequence, proposed, accepted)
        assert accepted == self._wanted.pop(sequence)


def compare(
    model: Llama, make: Callable[[KVCache], Watched], prompts: list[list[int]], params: list[SamplingParams],
    tokens: int = 2048, *, ahead: bool = False, chunk: int | None = None, cache_dtype: torch.dtype | None = None,
) -> Watched:  # fmt: skip
    """The proposer that `make` makes, after answers that must be those of a plain engine."""

    def engine(proposer: Callable[[KVCache], Watched] | None) -> Engine:
        return engine_of(model, proposer, tokens, ahead=ahead, chunk=chunk, cache_dtype=cache_dtype)

    made: list[Watched] = []

    def kept(cache: KVCache) -> Watched:
        made.append(make(cache))
        return made[0]

    assert ask(engine(kept), prompts, params) == ask(engine(None), prompts, params)
    return made[0]


def run_both(cfg: dict, shared: bool) -> tuple[list[Answer], list[Answer], int, int]:
    """In the interpreter's process: (answers, answers with a draft, tokens proposed and accepted).

    The draft is the model itself, or with `shared` its int4 form.
    """
    model = decoders.make(cfg, torch.float16, joined=True)
    drafting = model
    if shared:
        weights = int4_form(model).weights
        in_rows = {
            name: quantized.in_rows(w) if isinstance(w, quantized.Int4Weight) else w for name, w in weights.items()
        }
        drafting = replace(model, weights=in_rows)
    prompts = [decoders.prompt(15, 1), decoders.prompt(3, 2)]
    params = [
        SamplingParams(max_new_tokens=12, ignore_eos=True),
        SamplingParams(max_new_tokens=9, temperature=1.0, seed=3, top_p=0.9, ignore_eos=True),
    ]
    made: list[Watched] = []

    def draft(cache: KVCache) -> Watched:
        made.append(Watched(drafting, cache, shared, most=3))
        return made[0]

    wanted = ask(engine_of(model, None, 256, ahead=True, chunk=16), prompts, params)
    got = ask(engine_of(model, draft, 256, ahead=True, chunk=16), prompts, params)
    return wanted, got, made[0].proposed, made[0].accepted
