"""The C++ decoder in a spawned child, and its threads: as many as torch's, of one runtime."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch
from test_loading import PROMPTS, model

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_a_spawned_child_gives_the_same_ids_with_torchs_threads(tmp_path: Path) -> None:
    folder, held = model(tmp_path / "m"), torch.get_num_threads()
    try:
        wanted = generated(folder, 2)  # a parallel region in the parent first, which a forked child would not survive
    finally:
        torch.set_num_threads(held)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        ids, (one, three, with_torch) = pool.apply_async(child, (folder,)).get(timeout=100)
    assert ids == wanted
    assert three == one + 2  # two beside the caller
    assert with_torch == three  # torch's team is the same one
