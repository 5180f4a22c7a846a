"""One decode step, taken apart: its kernels and the gaps between them, and how near each op comes to the roofline.

The name is not profile.py: a file of that name beside scripts would shadow the standard library's `profile`, which cProfile
imports, and torch cProfile. Kernels and gaps are those of one step's trace on a GPU; the CPU has no kernel events, there
each op of the plan counts as one. Weights and cache are random, and every repeat is the step at the same context.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import roofline
import torch
from common import Spread, parser, report, table
from models import KINDS, random_model
from shapes import PRESETS
from trace_events import Event, device_events, gaps, kernel_rows, span

from baize_engine import backend
from baize_engine.model import cost
from baize_engine.model.kv_cache import BLOCK_SIZE
from baize_engine.model.llama import Llama
from baize_engine.model.steps import Row, StepState, context_bucket

GRAPH_OPS = 32  # calls of an op in a timed graph, at least


def op_names(plan: Iterable[partial[Any]]) -> list[str]:
    """The name of each op of a plan as in model/cost.py, where a layer's two linear_add are apart: o follows attention."""
    found: list[str] = []
    for op in plan:
        name = op.func.__name__
        if name == "linear_add":
            name += " o" if found[-1] == "attention" else " down"
        found.append(name)
    return found


def prepared(model: Llama, batch: int, context: int) -> tuple[StepState, int]:
    """A state whose every further step attends to `context` tokens, and the bound to run it with.

    Its rows end with the first step, and then stay in place.
    """
    cache = model.new_cache(batch * -(-context // BLOCK_SIZE) * BLOCK_SIZE)
    cache.keys.normal_()
    cache.values.normal_()
    rows = []
    for _ in range(batch):
        sequence = cache.allocate()
        cache.reserve(sequence, context)
        sequence.length = context - 1
        rows.append(Row(sequence, token=3, left=1))
    state = StepState(model, cache, batch)
    state.set(rows)
    bound = context_bucket(context, model.config.max_position_embeddings)
    state.run(bound)
    roofline.synchronize(model.device)
    if state.lens.tolist() != [context] * batch:
        raise SystemExit(f"the step attends to {state.lens.tolist()} tokens, wanted {context} in each row")
    return state, bound


def traced(state: StepState, bound: int, device: str) -> dict[str, Any]:
    """The chrome trace of one step, in which the CPU's, one call of ours, is the span "step". A first profile starts the
    profiler's own machinery and is thrown away."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _ in range(2):
        with torch.profiler.profile(activities=activities) as profiler:
            with torch.profiler.record_function("step"):
                state.run(bound)
            roofline.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(str(Path(folder) / "trace.json"))
        return json.loads((Path(folder) / "trace.json").read_bytes())


def host_events(plan: Sequence[Callable[[], Any]], names: Sequence[str]) -> list[Event]:
    """The ops of one step, run one after the other by the host."""
    found = []
    for name, op in zip(names, plan, strict=True):
        begin = time.perf_counter()
        op()
        found.append(Event(name, begin * 1e6, (time.perf_counter() - begin) * 1e6))
    return found


def times_on_cpu(plan: Sequence[Callable[[], Any]], names: Sequence[str], repeats: int) -> dict[str, Spread]:
    """Seconds of all calls of each op in a step, over whole steps."""
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        step = dict.fromkeys(names, 0.0)
        for event in host_events(plan, names):
            step[event.name] += event.duration / 1e6
        for name, seconds in step.items():
            found.setdefault(name, []).append(seconds)
    return {name: Spread.of(many) for name, many in found.items()}


def times_on_gpu(plan: Sequence[Callable[[], Any]], names: Sequence[str], repeats: int) -> dict[str, Spread]:
    """The same by events around graphs of one op's calls in all layers, as often as it takes to hide the graph's launch.

    Where all matrices of an op fit into the GPU's cache, it looks faster than it is in a step.
    """
    found = {}
    for name in dict.fromkeys(names):
        ops = [op for each, op in zip(names, plan, strict=True) if each == name]
        copies = -(-GRAPH_OPS // len(ops))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for op in ops * copies:
                op()
        found[name] = Spread.of(seconds / copies for seconds in _event_seconds(graph.replay, repeats))
    return found


def _event_seconds(run: Callable[[], None], repeats: int) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 2)]  # the first run is not counted
    for mark in marks[:-1]:
        mark.record()
        run()
    marks[-1].record()
    torch.cuda.synchronize()
    return [one.elapsed_time(two) / 1e3 for one, two in pairwise(marks[1:])]


@torch.inference_mode()
def profiled(options: argparse.Namespace, device: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    model = random_model(PRESETS[options.preset], options.kind, device)
    state, bound = prepared(model, options.batch, options.context)
    ops = state.ops(bound)
    names = op_names(ops)
    plan = [call for op in ops for call in model.compile([op])]
    trace = traced(state, bound, device)
    if options.trace:
        options.trace.write_text(json.dumps(trace))
    timer = times_on_cpu if device == "cpu" else times_on_gpu
    times = timer(plan, names, options.repeats)
    events = device_events(trace) if device != "cpu" else host_events(plan, names)
    if not events:
        raise SystemExit("the profiler recorded no kernel: may this process use the GPU's counters (CUPTI)?")
    limits = roofline.ceilings(device, model.dtype)
    activation = str(model.dtype).removeprefix("torch.")
    costs = cost.decode_step(model.config, options.kind, options.batch, options.context, activation)
    rows = roofline.rows(times, {name: names.count(name) for name in names}, costs, limits)
    facts = {
        "title": f"decode step: {options.preset} {options.kind}, batch {options.batch}, context {options.context}",
        "events": "kernels" if device != "cpu" else "ops", "kernels": kernel_rows(events),
        "step_us": span(events), "gaps_us": sum(gaps(events)), "ceilings": limits,
    }  # fmt: skip
    return rows, facts


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="125m")
    options.add_argument("--kind", choices=KINDS, default="float16")
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--context", type=int, default=128)
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--repeats", type=int, default=50, help="timed repeats of each op")
    options.add_argument("--trace", type=Path, metavar="FILE", help="write one step's chrome trace there")
    options.add_argument("--picture", type=Path, metavar="FILE", help="draw the roofline there (matplotlib)")
    options.add_argument("--from_json", type=Path, metavar="FILE", help="measure nothing, draw this report")
    chosen = options.parse_args()
    if chosen.batch < 1 or chosen.repeats < 1 or not 2 <= chosen.context <= PRESETS[chosen.preset].positions:
        options.error(f"--batch, --repeats must be 1 or more, --context 2 to {PRESETS[chosen.preset].positions}")
    if chosen.picture:
        roofline.figure_class()
    if chosen.from_json:
        if not chosen.picture:
            options.error("--from_json needs --picture")
        roofline.draw(json.loads(chosen.from_json.read_text()), chosen.picture)
        return 0
    device = backend.resolve_device(chosen.device)
    rows, facts = profiled(chosen, device)
    print(*table(facts["kernels"]), f"{facts['step_us']:.4g} us, {facts['gaps_us']:.4g} of them gaps\n", sep="\n")
    report("profile_step", rows, chosen, device, facts)
    if chosen.picture:
        roofline.draw({**facts, "rows": rows}, chosen.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
