"""What a spawned process runs: a tiny model's ids with several numbers of threads."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from tiny import PROMPTS

from baize_engine import Engine, SamplingParams

PARAMS = [SamplingParams(max_new_tokens=10), SamplingParams(max_new_tokens=10, temperature=1.0, top_p=0.9, seed=3)]


TASKS = Path("/proc/self/task")


def generated(folder: Path, threads: int) -> list[list[int]]:
    with Engine.from_pretrained(folder, device="cpu", threads=threads) as engine:
        return [done.token_ids for params in PARAMS for done in engine.generate(PROMPTS, params)]


def child(folder: Path) -> tuple[list[list[int]], list[int]]:
    """The ids of runs with 1 and 3 threads, and the threads that the process had after each, and after torch's own work."""
    generated(folder, 1)
    counts = [len(os.listdir(TASKS))]
    ids = generated(folder, 3)
    counts.append(len(os.listdir(TASKS)))
    torch.randn(1 << 20).exp().sum()
    return ids, [*counts, len(os.listdir(TASKS))]
