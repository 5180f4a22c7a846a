"""Baselines: greedy decoding by transformers, as it is and compiled by torch, by the host's clock. Knows nothing of ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def theirs(model: Any, many: list[list[int]], steps: int) -> tuple[float, list[float]]:
    """Seconds to the first tokens, and of each further step, by transformers' model and its cache, greedily."""
    with torch.inference_mode():
        begin = time.perf_counter()
        out = model(torch.tensor(many, device=model.device), use_cache=True)
        tokens = out.logits[:, -1].argmax(-1)
        tokens.tolist()
        first, seconds = time.perf_counter() - begin, []
        for _ in range(steps - 1):
            begin = time.perf_counter()
            out = model(tokens[:, None], past_key_values=out.past_key_values, use_cache=True)
            tokens = out.logits[:, -1].argmax(-1)
            tokens.tolist()
            seconds.append(time.perf_counter() - begin)
    return first, seconds


def compiled(model: Any, many: list[list[int]], steps: int) -> tuple[float, list[float]]:
    """transformers' model, its step compiled by torch (reduce-overhead: CUDA graphs) over a cache of fixed size."""
    from transformers import StaticCache

    device, length = model.device, len(many[0])
    static: Any = StaticCache
    past = static(config=model.config, max_cache_len=length + steps)
    step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=False, dynamic=False)
    with torch.inference_mode():
        begin = time.perf_counter()
        places = torch.arange(length, device=device)
        out = model(torch.tensor(many, device=device), past_key_values=past, cache_position=places, use_cache=True)
        tokens = out.logits[:, -1].argmax(-1)
        tokens.tolist()
        first, seconds = time.perf_counter() - begin, []
        for number in range(steps - 1):
            begin = time.perf_counter()
            place = torch.tensor([length + number], device=device)
            out = step(tokens[:, None], past_key_values=past, cache_position=place, use_cache=True)
            tokens = out.logits[:, -1].argmax(-1).clone()
            tokens.tolist()
            seconds.append(time.perf_counter() - begin)
    return first, seconds


def decoded(
    run: Callable[[list[list[int]], int], tuple[float, list[float]]], many: list[list[int]], runs: int, steps: int
) -> tuple[list[float], list[float]]:
    """Seconds to the first token of `runs` prompts, each by itself, and of `steps` steps of all; each is run once before."""
    torch.compiler.reset()  # so many shapes are compiled, and no more
    firsts = [run(many[:1], 1)[0] for _ in range(runs + 1)]
    _, (_, seconds) = run(many, steps + 1), run(many, steps + 1)  # a cache of another length would be compiled anew
    return firsts[1:], seconds
