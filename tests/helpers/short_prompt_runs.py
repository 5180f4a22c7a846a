"""Short prompts through their plans and op by op."""

from __future__ import annotations

import decoders
import tiny
import torch

from baize_engine.model.buffers import cache_slots
from baize_engine.model.llama import Llama

CONFIG = tiny.config(num_key_value_heads=2)


def both_ways(model: Llama, before: int, count: int) -> list[tuple[torch.Tensor, ...]]:
    """(logits, keys, values, length) of `count` tokens after `before`, in one launch and op by op, beside another sequence."""
    found = []
    for ahead in (True, False):
        decoder = decoders.Decoder(model, 512, ahead=ahead)
        cache = decoder.cache
        cache.keys.fill_(0.5)
        cache.values.fill_(0.5)
        other, own = decoder.sequence(), decoder.sequence()
        decoder.prefill(decoders.prompt(20, 9), other)
        if before:
            decoder.forward([decoders.prompt(before, 1)], [own], prompt=True)
        logits = decoder.prefill(decoders.prompt(count, 2), own)
        own_blocks = [*other.block_table, *own.block_table]
        rest = [block for block in range(cache.num_blocks) if block not in own_blocks]
        assert bool((cache.keys[:, rest] == 0.5).all())
        assert bool((cache.values[:, rest] == 0.5).all())
        rows = cache_slots(own.block_table, cache.block_size, 0, own.num_cached)
        parts = [part[:, : cache.num_blocks].flatten(1, 2)[:, rows] for part in (cache.keys, cache.values)]
        found.append((logits, *parts, torch.tensor(own.num_cached)))
    return found


def equal_bits(kind: str | None) -> bool:
    """The same with joined and quantised weights in their own 16-bit type, for the interpreter's process."""
    model = decoders.make(CONFIG, torch.float16, kind, joined=True)
    return all(
        torch.equal(mine, wanted) for count in (5, 40) for mine, wanted in zip(*both_ways(model, 3, count), strict=True)
    )
