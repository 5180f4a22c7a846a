"""Chains of a tiny model's ops, ops that go wrong, and timers whose times are known."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import chains
import in_turn
import pytest
import torch
import tuner
from in_turn import Measured, OnHost
from tune_kernels import config_of
from tuner import Cell

from baize_engine.kernels import reference, settings, tuned

CPU = torch.device("cpu")


def tiny(kind: str = "float16", ops: Any = reference, rows: int = 2, views: tuple[int, ...] = (16, 64)) -> chains.Chain:
    torch.manual_seed(1)
    config = config_of(Cell("tiny", kind, rows))
    return chains.layers(ops, config, kind, rows, "cpu", views, 0)


def spoiled(wrong: Callable[[Any], Exception | float | None]) -> Any:
    """The reference ops, whose gate_up does by its settings what `wrong` says: raise, or add to its results."""

    def gate_up(
        x: Any, norm: Any, eps: float, weights: Any, *, out: torch.Tensor, batch_invariant: bool
    ) -> torch.Tensor:
        how = tuned.product("gate_up", 16, tuple(weights[0].shape), x.shape[0], CPU)
        if isinstance(what := wrong(how), Exception):
            raise what
        reference.gate_up(x, norm, eps, weights, out=out, batch_invariant=batch_invariant)
        return out.add_(what or 0.0)

    return SimpleNamespace(**{**vars(reference), "gate_up": gate_up})


class Slow(OnHost):
    """A timer of runs whose settings say how long they take: `late` products a tenth less each."""

    turns, repeats = 2, 2

    def __init__(self) -> None:
        self.us: dict[Any, float] = {}
        self.prepared = 0

    def prepare(self, calls: Any) -> Any:
        self.prepared += 1
        how = tuned.table(CPU)
        products = [found for key, found in how.entries.items() if key[0] in settings.PRODUCTS]
        late = sum(next(iter(found.values())).trigger == "late" for found in products)
        run = super().prepare(calls)
        self.us[run] = (10 - late) * len(calls)
        return run

    def seconds(self, runs: Any, rewind: Any) -> list[float]:
        return [self.us[run] * 1e-4 for run in runs]


def fake_gpu(monkeypatch: pytest.MonkeyPatch, ms: float) -> list[str]:
    """A torch.cuda whose clock goes on by `ms` for each call of a replay; returns what will have been asked of it."""
    clock = [0.0]
    said: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock[0]

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    class Graph:
        def __init__(self, calls: Any) -> None:
            self._calls, self._run = calls, OnHost().prepare(calls)

        def replay(self) -> None:
            clock[0] += ms * len(self._calls)
            self._run()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append(f"wait {device}"))
    monkeypatch.setattr(in_turn.graphs, "run_aside", lambda calls, device: said.append(f"aside {len(calls)}"))
    monkeypatch.setattr(in_turn.graphs, "capture", lambda calls, device: Graph(calls))
    return said


class Untimed(OnHost):
    """Runs are checked and not timed: the interpreter's times say nothing."""

    turns = 1

    def seconds(self, runs: Any, rewind: Any) -> list[float]:
        return [1.0] * len(runs)


def interpreted(kind: str) -> list[str]:
    """In the interpreter's process: the GPU's own ops in a chain, once more with other tiles; names of ops that moved."""
    chain = tiny(kind, chains.kernels(), rows=1, views=(16,))
    start = tuner.rules(chain.ops)
    measured = Measured(chain, start, Untimed())
    moves = [move for move in tuner.moves(chain.ops) if move.aspect in ("tile", "norm")]
    last = {move.ops: move for move in moves if move.on(start) != start}
    for move in last.values():
        measured.compare(start, move.on(start), ["16"])
    return sorted(move.names for move in last.values())
