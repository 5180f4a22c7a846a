"""Times passes of a chain under two plans in turn, and compares the bits that they write.

On a GPU a plan is captured with its settings into a CUDA graph of several passes, and device events time its replays. On the
CPU, where settings mean nothing, the calls themselves are timed: a rehearsal of the tuner, no measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from math import ceil
from statistics import median
from typing import Any, Protocol

import torch
import tuner
from chains import Chain
from tuner import Plan, Turns

from baize_engine.kernels import tuned
from baize_engine.model import graphs

LONG = 1e-3  # seconds that a timed run should take: hundreds of times the gap before it
ROUNDS = 64  # most passes in a run
CLEARLY = 1.02  # times the best's first turn: what takes longer in its own needs no more turns
Run = Callable[[], object]


class OtherBits(Exception):
    """A plan's results are not those of the rules."""


class Timer(Protocol):
    turns: int  # how often the two plans take turns
    repeats: int  # runs in a turn

    def prepare(self, calls: Sequence[Run]) -> Run:
        """What runs the calls, with the settings in use now."""

    def seconds(self, runs: Sequence[Run], rewind: Run) -> list[float]:
        """Seconds of each of the runs, made one after the other, `rewind` before each."""


class OnGpu:
    turns, repeats = 4, 4

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def prepare(self, calls: Sequence[Run]) -> Run:
        graphs.run_aside(list(dict.fromkeys(calls)), self._device)
        graph = graphs.capture(calls, self._device)
        torch.cuda.synchronize(self._device)
        return graph.replay

    def seconds(self, runs: Sequence[Run], rewind: Run) -> list[float]:
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in runs]
        runs[0]()  # not counted: the device works on it while the host gets ahead, whose launch would else be timed
        for run, (begin, end) in zip(runs, marks, strict=True):
            rewind()
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize(self._device)
        return [begin.elapsed_time(end) * 1e-3 for begin, end in marks]


class OnHost:
    turns, repeats = 2, 1

    def prepare(self, calls: Sequence[Run]) -> Run:
        def run() -> None:
            for call in calls:
                call()

        return partial(copy_context().run, run)  # as a graph, with the settings of now

    def seconds(self, runs: Sequence[Run], rewind: Run) -> list[float]:
        found = []
        for run in runs:
            rewind()
            begin = time.perf_counter()
            run()
            found.append(time.perf_counter() - begin)
        return found


class Measured:
    """A chain and what its plans are compared by. Making it runs the chain under `start`, whose bits are the wanted ones."""

    def __init__(self, chain: Chain, start: Plan, timer: Timer) -> None:
        self.chain, self._timer = chain, timer
        self._held: dict[tuple[Any, ...], Run] = {}
        self._rounds = dict.fromkeys(chain.calls, 1)
        for view in chain.calls:
            once = self._prepared(start, view)
            seconds = min(timer.seconds([once] * 3, chain.rewind))
            self._rounds[view] = min(ROUNDS, max(1, ceil(LONG / seconds)))
        self._held.clear()
        self._wanted = {view: self._written(self._prepared(start, view), view) for view in chain.calls}

    def compare(self, best: Plan, tried: Plan, views: Sequence[str]) -> Turns:
        """Microseconds of a unit of the chain. Of several views the times relative to the best's are averaged, and said as
        if they were the first's. OtherBits where `tried` has other results."""
        kept = self._key(best)
        self._held = {key: run for key, run in self._held.items() if key[0] == kept}
        found: list[list[tuple[float, float]]] = []  # of each view the turns, the best's seconds and the other's
        for view in views:
            ours, theirs = self._prepared(best, view), self._prepared(tried, view)
            self._check(theirs, view)
            many, turns = self._timer.repeats, []
            self._timer.seconds([ours, theirs], self.chain.rewind)  # not counted
            for _ in range(self._timer.turns):
                seconds = self._timer.seconds([ours] * many + [theirs] * many, self.chain.rewind)
                turns.append((median(seconds[:many]), median(seconds[many:])))
                if len(views) == 1 and turns[0][1] > CLEARLY * turns[0][0]:
                    break
            found.append(turns)
        usual = [median(ours for ours, _ in turns) for turns in found]
        scale = usual[0] * 1e6 / self._rounds[views[0]] / self.chain.units / len(found)

        def joined(which: int) -> tuple[float, ...]:
            return tuple(
                scale * sum(turn[which] / one for turn, one in zip(together, usual, strict=True))
                for together in zip(*found, strict=True)
            )

        return Turns(joined(0), joined(1))

    def _key(self, plan: Plan) -> tuple[Any, ...]:
        return tuple(plan[op.name] for op in self.chain.ops)

    def _prepared(self, plan: Plan, view: str) -> Run:
        key = self._key(plan), view
        if key not in self._held:
            calls = [call for _, call in self.chain.calls[view]] * self._rounds[view]
            with tuned.using(tuner.table(self.chain.ops, plan)):
                self._held[key] = self._timer.prepare(calls)
        return self._held[key]

    def _written(self, run: Run, view: str) -> list[torch.Tensor]:
        self.chain.spoil(view)
        run()
        return self.chain.results(view)

    def _check(self, run: Run, view: str) -> None:
        for got, wanted in zip(self._written(run, view), self._wanted[view], strict=True):
            if not same_bits(got, wanted):
                where = f" at {view}" if view else ""
                raise OtherBits(
                    f"other bits than the rules{where}: {int((got != wanted).sum())} of {got.numel()} values"
                )


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors are the same, bit for bit; what is not a number equals itself."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = kinds[one.element_size()]
    return torch.equal(one.view(kind), two.view(kind))
