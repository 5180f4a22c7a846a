"""Adders: equal bytes and sums of all of them, from buffers or from files in the page cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from folders import expected, load, same_bits

from baize_engine import recover
from baize_engine.backend.adders import CppAdder
from baize_engine.checkpoint.tensor_reader import FileRange
from baize_engine.errors import CheckpointError
from baize_engine.recovery import memory
from baize_engine.recovery import stream as streaming


@pytest.mark.parametrize("cached", [True, False, None])
@pytest.mark.parametrize(("workers", "cpus"), [(1, 2), (3, 2), (3, 8)])
def test_pieces_and_workers_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, cpus: int, cached: bool | None
) -> None:
    """Small pieces cut rows and the boundary between the base's rows and the mean row."""
    cfg = tiny.config(vocab_size=5000, hidden_size=36, num_attention_heads=3, num_key_value_heads=3)
    base, diff = tiny.write_pair(tmp_path, cfg=cfg)
    whole = recover(base, diff, tmp_path / "whole", device="cpu", progress=False)
    assert memory.PIECE % 65536 == 0
    monkeypatch.setattr("baize_engine.checkpoint.file_io.is_cached", lambda *_: cached)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    from_files = counted(monkeypatch, CppAdder, "add_files")
    run = streaming.stream
    monkeypatch.setattr(
        "baize_engine.recovery.run.stream", lambda *a, **k: run(*a, **{**k, "piece": 65536, "workers": workers})
    )
    pieces = recover(base, diff, tmp_path / "pieces", device="cpu", progress=False)
    assert pieces.manifest.tensors == whole.manifest.tensors
    same_bits(load(tmp_path / "pieces"), expected(load(base), load(diff), torch.float16))
    assert bool(from_files) == bool(cached)


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[str]:
    """Gets an item for each call of a method from here on."""
    calls, method = [], getattr(owner, name)

    def counting(*arguments: object, **named: object) -> object:
        calls.append(name)
        return method(*arguments, **named)

    monkeypatch.setattr(owner, name, counting)
    return calls


def test_a_cached_file_that_is_cut_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)
    add_files, run = CppAdder.add_files, streaming.stream

    def cutting(*arguments: Any, **named: Any) -> Any:
        other: FileRange = arguments[2]
        os.truncate(f"/proc/self/fd/{other.descriptor}", other.offset + 10)
        return add_files(*arguments, **named)

    monkeypatch.setattr("baize_engine.checkpoint.file_io.is_cached", lambda *_: True)
    monkeypatch.setattr(CppAdder, "add_files", cutting)
    monkeypatch.setattr("baize_engine.recovery.run.stream", lambda *a, **k: run(*a, **{**k, "workers": 1}))
    with pytest.raises(CheckpointError, match=rf"{diff}/\S+: model\.\S+: the file ends at byte \d+, wanted \d+ more"):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("backend", ["cpp-scalar", "torch"])
def test_backends_agree_on_bytes_and_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    base, diff = tiny.write_pair(tmp_path)
    first = recover(base, diff, tmp_path / "first", device="cpu", progress=False)
    monkeypatch.setenv("BAIZE_BACKEND", backend)
    second = recover(base, diff, tmp_path / "second", device="cpu", progress=False)
    assert second.manifest.backend == backend
    assert second.manifest.tensors == first.manifest.tensors
