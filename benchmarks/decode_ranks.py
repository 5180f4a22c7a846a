"""Decoding by the ranks that torchrun has started, beside one process of as many threads: bits, time, and what exchange costs.

    torchrun --nproc-per-node 2 benchmarks/bench_decode.py --preset 1b --kinds float16 int8

On CPUs. Each rank has its part of a model's folder, which rank 0 writes; all take turns with two processes that hold the whole
one, plainly and with `tensor_parallel="exact"`. Ids of the ranks must be those of the latter before anything is timed. Only
rank 0 reads clocks and prints.

A rank sleeps and wakes some 50 times in a step, and another program on its core may keep it from waking for milliseconds: on a
machine that others use, run all of it at real-time priority (`chrt -r 1`), which the report's "real_time" tells.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import arrivals
import torch
from arrivals import Rows, engine_of
from common import GAP, latencies, quantile
from engines import CHOSEN, Baize
from model_files import Store
from peers import Child, Timed
from rank_exchange import Clocked, Spent, alone
from reports import Report
from side_by_side import Oracle, Turns, check, random_prompt

import baize_engine
from baize_engine.distributed.ranks import Ranks
from baize_engine.distributed.world import World
from baize_engine.loaded_model import LoadedModel
from baize_engine.loading import load_folder
from baize_engine.model import cost, parallel_cost
from baize_engine.model.config import ModelConfig
from baize_engine.options import EngineOptions
from baize_engine.team import Team, on_all_ranks


@dataclass(frozen=True)
class OnRanks(LoadedModel):
    """ranks: those that hold the model. alone: of each batch the exchanges of a step with nothing between them."""

    ranks: Ranks | None = None
    alone: Mapping[int, Spent] = field(default_factory=dict)


def load_written(
    team: Team, options: EngineOptions, preset: str, kind: str, folder: Path, batches: list[int]
) -> LoadedModel:
    """This rank's part of a preset's model, which rank 0 writes below `folder` where it is not there yet."""
    ranks = team.ranks
    if ranks is None:
        raise ValueError("this process is alone, wanted ranks")
    with team.serving():
        if team.follows:
            told = ranks.receive()
            if told is None:  # rank 0 could not write it
                ranks.leave()
                raise SystemExit(ranks.exit_code)
            path = Path(str(told[0]))
        else:
            path = Store(folder, preset).ours(kind)
            ranks.tell(str(path))
            ranks.flush()
        loaded = load_folder(team, options, path)
        model = loaded.loop.decoder.model
        return OnRanks(**vars(loaded), ranks=ranks, alone={batch: alone(ranks, model, batch) for batch in batches})


def load(options: argparse.Namespace, kind: str, folder: Path) -> OnRanks:
    """Loads on all ranks, each of which calls this once, and returns on rank 0, which may call it again after on_close."""
    tokens = max(arrivals.room(batch, context, CHOSEN) for batch in options.batches for context in options.contexts)
    engine = EngineOptions(device="cpu", cache_tokens=tokens)
    return cast(OnRanks, on_all_ranks(load_written, engine, options.preset, kind, folder, options.batches))


def follow(options: argparse.Namespace) -> NoReturn:
    """What the ranks other than 0 do."""
    load(options, options.kinds[0], Path())
    raise AssertionError("on_all_ranks returned on a rank that follows")


class RanksEngine(Baize):
    """The engine of rank 0, over a model that all ranks hold."""

    def __init__(self, loaded: OnRanks) -> None:
        assert loaded.ranks is not None
        self.loop, self.ranks, self.arrivals = loaded.loop, loaded.ranks, arrivals
        self.model = self.loop.decoder.model
        self.threads = torch.get_num_threads()
        self.engine = engine_of(self.loop)

    def build(self) -> str:
        return f"{baize_engine.__version__}, {self.ranks.world.size} ranks of {self.threads} threads"

    def clock(self, prompt: list[int], batch: int) -> None:
        """As `start`, for `clocked`."""
        self.clocks = Clocked(self.ranks, self.model.config.hidden_size)
        model = replace(self.model, group=self.clocks, channel=self.clocks)
        self.rows = Rows(model, self.loop.cache, prompt, batch)
        self.rows(2)

    def clocked(self, count: int) -> tuple[list[Spent], list[float]]:
        """What each of `count` steps spends in exchanges, and its seconds; with the first step others' work may be done."""
        self.clocks.steps.clear()
        _, seconds = self.rows(count)
        return self.clocks.steps[:count], seconds

    def _room(self, tokens: int) -> None:
        """The ranks' caches have been made."""
        there = self.loop.cache.num_blocks * self.loop.cache.block_size
        if tokens > there:
            raise ValueError(f"wanted room for {tokens} tokens, the cache has {there}")


class Here:
    """An engine in this process, which takes turns with those of others."""

    def __init__(self, engine: RanksEngine) -> None:
        self.build, self._engine = engine.build(), engine

    def ask(self, call: str, *arguments: Any) -> Any:
        return getattr(self._engine, call)(*arguments)


class Bench:
    """The rows of all kinds of weights; `memory`: what measures its read speed."""

    def __init__(self, report: Report, options: argparse.Namespace, world: World, store: Store, memory: Child) -> None:
        self.report, self.options, self.world, self.store, self.memory = report, options, world, store, memory
        self.threads = torch.get_num_threads()

    def kind(self, kind: str, folder: Path) -> None:
        with ExitStack() as stack:
            loaded = load(self.options, kind, folder)
            stack.callback(loaded.on_close)
            path, together = self.store.ours(kind), self.threads * self.world.local_size
            ranks, exact, plain = (f"baize {kind} {how}" for how in (f"{self.world.size} ranks", "exact", "plain"))
            engines: dict[str, Timed] = {ranks: Here(RanksEngine(loaded))}
            for name, engine in ((exact, "baize exact"), (plain, "baize")):
                child = Child(engine, path, together)
                stack.callback(child.close)
                engines[name] = child
            oracle = Oracle(self.store.ours("float16"))
            for name, engine in engines.items():
                check(name, engine, oracle, kind)
                self.report.facts.setdefault("builds", {})[name] = engine.build
            del oracle
            turns = Turns(engines, partial(self.memory.ask, "read"))
            config = ModelConfig.from_folder(path)
            for context in self.options.contexts:
                for batch in self.options.batches:
                    place = {"kind": kind, "batch": batch, "context": context}
                    with self.report.case(engine=ranks, **place):
                        self._steps(turns, config, ranks, exact, place)
                        self._exchange(engines[ranks], config, ranks, place, loaded.alone[batch])

    def _steps(self, turns: Turns, config: ModelConfig, ranks: str, exact: str, place: dict[str, Any]) -> None:
        """A row for each engine."""
        kind, batch, context = place.values()
        count, prompt = self.options.steps + 1, random_prompt(context, config.vocab_size)
        turns.each(lambda engine: engine.ask("start", prompt, batch))
        ids = turns.each(lambda engine: engine.ask("steps", count)[0])
        check_equal(ranks, ids[ranks], exact, ids[exact])
        seconds, speed = turns.run(self.options.rounds, lambda engine: engine.ask("steps", count)[1][1:])
        middle = context + self.options.steps // 2  # what a step attends to on the average
        moved = sum(op.bytes for op in cost.decode_step(config, kind, batch, middle, "float32"))
        of_exact = quantile(seconds[exact], 0.5)
        for name, found in seconds.items():
            size, threads = (
                (self.world.size, self.threads) if name == ranks else (1, self.threads * self.world.local_size)
            )
            step = quantile(found, 0.5)
            self.report.row({
                "engine": name, **place, "ranks": size, "threads": threads, **latencies(GAP, found), "tok/s": batch / step,
                "tok/s_p20": batch / quantile(found, 0.8), "tok/s_p80": batch / quantile(found, 0.2),
                "read_GB/s": speed, "ceiling_tok/s": batch * speed * 1e9 / moved, "share": moved / step / 1e9 / speed,
                "of_exact": of_exact / step,
            })  # fmt: skip

    def _exchange(self, engine: Timed, config: ModelConfig, name: str, place: dict[str, Any], least: Spent) -> None:
        """A row of what the exchanges of a step take, within it and alone, in milliseconds of rank 0."""
        kind, batch, context = place.values()
        engine.ask("clock", random_prompt(context, config.vocab_size), batch)
        steps: list[Spent] = []
        seconds: list[float] = []
        for _ in range(self.options.rounds):
            spent, found = engine.ask("clocked", self.options.steps + 1)
            steps += spent[1:]
            seconds += found[1:]
        usual, step = Spent.usual(steps), quantile(seconds, 0.5)
        whole = quantile([spent.whole for spent in steps], 0.5)
        middle = context + self.options.steps // 2
        costs = parallel_cost.rank_cost(config, self.world.size, kind, batch, middle, "float32", "float16")
        self.report.row({
            "engine": f"{name}: exchange", **place, "exchanges": costs.exchanges, "sent_KB": costs.sent / 1e3,
            "step_ms": step * 1e3, "exchange_ms": whole * 1e3, "of_step": whole / step,
            **{f"{part}_ms": seconds * 1e3 for part, seconds in vars(usual).items()},
            "alone_ms": least.whole * 1e3, **{f"alone_{part}_ms": seconds * 1e3 for part, seconds in vars(least).items()},
        })  # fmt: skip


def check_equal(name: str, ids: list[list[int]], exact: str, wanted: list[list[int]]) -> None:
    """SystemExit, with the first step that differs, unless both have chosen the same ids."""
    for step, (one, other) in enumerate(zip(ids, wanted, strict=True)):
        if one != other:
            raise SystemExit(f"step {step}: {name} chose {one}, {exact} {other}")


def decode_rows(report: Report, options: argparse.Namespace, world: World) -> None:
    """The rows of all kinds, on rank 0."""
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        memory = Child("memory", folder, torch.get_num_threads() * world.local_size)
        stack.callback(memory.close)
        bench = Bench(report, options, world, Store(folder, options.preset), memory)
        report.facts |= {"ranks": world.size, "real_time": os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)}
        for kind in options.kinds:
            with report.case(engine=f"baize {kind}", kind=kind):
                bench.kind(kind, folder)
