"""A decode step that can be repeated at the same context: by itself, op by op, or as the engine's loop runs it.

Weights and cache are random. Knows nothing of reports.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from attribution import Place, places
from common import Spread, measure
from gpu import gpu_spread
from roofline import synchronize
from torch.profiler import record_function
from trace_events import Event, Label

from baize_engine import SamplingParams
from baize_engine.backend.plan_ops import PlanOp
from baize_engine.generation.block_pool import BlockPool
from baize_engine.generation.sequence import Sequence
from baize_engine.model.kv_cache import BLOCK_SIZE
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import new_cache
from baize_engine.model.runner import Batch
from baize_engine.model.step_state import StepState, context_bucket


def nothing() -> None:
    """What there is to do meanwhile, where there is nothing."""


@dataclass(frozen=True)
class DecodeStep:
    """A state whose every further step attends to the same tokens: its rows ended with the first step and stay in place."""

    model: Llama
    state: StepState
    rows: list[Sequence]
    bound: int  # of the context: `max_context` of StepState.run
    # seconds of the first step: on a GPU kernels are compiled or loaded, run once, captured and replayed
    first_s: float
    second_s: float  # seconds of another state's first step: the same without compiling and loading

    @classmethod
    def of(cls, model: Llama, batch: int, context: int) -> DecodeStep:
        """A step of `batch` rows that attend to `context` tokens each."""
        cache = new_cache(model, batch * -(-context // BLOCK_SIZE) * BLOCK_SIZE)
        cache.keys.normal_()
        cache.values.normal_()
        rows, pool = [], BlockPool(cache.num_blocks)
        for _ in range(batch):
            sequence = Sequence([], SamplingParams(), max_tokens=2, token_ids=[3])
            pool.reserve(sequence, context)
            sequence.num_cached = context - 1
            rows.append(sequence)
        bound = context_bucket(context, model.config.max_position_embeddings)
        seconds = []
        for _ in range(2):
            state = StepState(model, cache, batch)
            state.set(rows)
            synchronize(model.device)
            begin = time.perf_counter()
            state.run(bound)
            synchronize(model.device)
            seconds.append(time.perf_counter() - begin)
        if state.lens.tolist() != [context] * batch:
            raise SystemExit(f"the step attends to {state.lens.tolist()} tokens, wanted {context} in each row")
        return cls(model, state, rows, bound, *seconds)

    def run(self) -> None:
        """One step, queued on the device."""
        self.state.run(self.bound)

    def ops(self) -> list[PlanOp]:
        """The plan as it was made."""
        return self.state.ops(self.bound)

    def plan(self) -> list[Callable[[], Any]]:
        """The calls that the backend makes of each op by itself."""
        return [call for op in self.ops() for call in self.model.ops.compile([op])]

    def places(self) -> list[Place]:
        """Where each op stands."""
        return places(self.ops())

    def label(self, place: Place) -> Label:
        """What an op of the CPU is shown as: the backend's implementation stands for the kernel."""
        return Label(place.op, place.layer, self.model.ops.rows[place.op.split()[0]].name)

    def consecutive(self, steps: int, runs_ahead: bool | None = None) -> Callable[[], None]:
        """Steps as the engine's loop runs them: some ahead of the tokens that the host has read.

        The host's part of each is in the spans "launch" and "wait" (for its tokens).
        """
        self.state.set([])
        batch: Batch[Sequence] = Batch(
            self.model, self.state.cache, len(self.rows), runs_ahead=runs_ahead, state=self.state
        )
        for row in self.rows:
            row.num_in_flight = 0
            batch.add(row)
            row.num_in_flight = 1  # for ever: it ends with the first step
        batch.launch()
        batch.read()

        def read() -> None:
            with record_function("wait"):
                batch.read()

        def run() -> None:
            for _ in range(steps):
                with record_function("launch"):
                    batch.launch()
                if batch.in_flight > batch.ahead:
                    read()
            while batch.in_flight:
                read()

        return run

    def trace(self, steps: int) -> dict[str, Any]:
        """The chrome trace of consecutive steps. A first profile starts the profiler's own machinery and is thrown away."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.model.device != "cpu":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        run = self.consecutive(steps)
        for _ in range(2):
            with torch.profiler.profile(activities=activities) as profiler:
                run()
                synchronize(self.model.device)
        with tempfile.TemporaryDirectory() as folder:
            profiler.export_chrome_trace(str(Path(folder) / "trace.json"))
            return json.loads((Path(folder) / "trace.json").read_bytes())

    def seconds(self, repeats: int, meanwhile: Callable[[], None] = nothing) -> Spread:
        """Seconds of a step, over steps that follow each other; `meanwhile` is called while they are on their way."""
        if self.model.device == "cpu":
            return measure(self.run, repeats)
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 2)]  # the first step is not counted
        for mark in marks[:-1]:
            mark.record()
            self.run()
        marks[-1].record()
        meanwhile()
        synchronize(self.model.device)
        return Spread.of(one.elapsed_time(two) / 1e3 for one, two in pairwise(marks[1:]))


def host_events(plan: abc.Sequence[Callable[[], Any]], labels: abc.Sequence[Label]) -> list[tuple[Label, Event]]:
    """The ops of one step, run one after the other by the host."""
    found = []
    for label, op in zip(labels, plan, strict=True):
        begin = time.perf_counter()
        op()
        found.append((label, Event(label.op, begin * 1e6, (time.perf_counter() - begin) * 1e6)))
    return found


def times_on_cpu(
    plan: abc.Sequence[Callable[[], Any]], labels: abc.Sequence[Label], repeats: int
) -> tuple[dict[str, Spread], list[list[tuple[Label, Event]]]]:
    """Seconds of all calls of each op in a step, over whole steps, and the steps."""
    steps = [host_events(plan, labels) for _ in range(repeats)]
    found: dict[str, list[float]] = {}
    for step in steps:
        seconds = dict.fromkeys((label.op for label in labels), 0.0)
        for label, event in step:
            seconds[label.op] += event.duration / 1e6
        for name, value in seconds.items():
            found.setdefault(name, []).append(value)
    return {name: Spread.of(many) for name, many in found.items()}, steps


def time_on_gpu(calls: abc.Sequence[Callable[[], Any]], repeats: int) -> Spread:
    """Seconds of one op's calls in all layers, captured in a graph of their own and replayed without the host.

    Where all matrices of an op fit into the GPU's cache, it looks faster than it is in a step.
    """
    one = gpu_spread(calls, repeats)
    return Spread(one.median * len(calls), one.p20 * len(calls), one.p80 * len(calls))
