"""The C++ decoder in a spawned child, and its threads: as many as torch's, of one runtime."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest
import torch
from spawned import child, generated
from tiny import model


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_a_spawned_child_gives_the_same_ids_with_torchs_threads(tmp_path: Path) -> None:
    folder, held = model(tmp_path / "m"), torch.get_num_threads()
    try:
        wanted = generated(folder, 2)  # a parallel region in the parent first, which a forked child would not survive
    finally:
        torch.set_num_threads(held)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        ids, (one, three, with_torch) = pool.apply_async(child, (folder,)).get(timeout=300)
    assert ids == wanted
    assert three == one + 2  # two beside the caller
    assert with_torch == three  # torch's team is the same one
