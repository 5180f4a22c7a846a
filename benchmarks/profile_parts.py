"""The parts of a step's profile, each of which may fail alone: ceilings, the step, its trace, its ops, bytes by ncu.

Knows the report that they go to, but neither files nor arguments of a command line beyond those of the case.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any

import attribution
import ncu
import roofline
import torch
from common import Spread
from decode_step import DecodeStep, time_on_gpu, times_on_cpu
from gpu_state import GpuState
from reports import Report, table
from roofline import WHOLE
from trace_events import (
    Event,
    Label,
    device_events,
    gaps,
    graph_launches,
    kernel_rows,
    op_times,
    span,
    step_rows,
    steps,
)

from baize_engine.model import cost

SCRIPT = Path(__file__).resolve().with_name("profile_step.py")  # which ncu runs again


class Profile:
    """A step's profile as it is made; what becomes known goes to `report`."""

    def __init__(self, step: DecodeStep, options: argparse.Namespace, report: Report) -> None:
        self.step, self.options, self.report, self.facts = step, options, report, report.facts
        model = step.model
        self.device, self.on_gpu = model.device, model.device != "cpu"
        activation = str(model.dtype).removeprefix("torch.")
        costs = cost.decode_step(model.config, options.kind, options.batch, options.context, activation)
        self.costs = {each.name: each for each in costs}
        self.limits: dict[str, float] = {}
        self.in_step: dict[str, float] = {}  # microseconds of each op in a step as it runs
        self.gpu = GpuState(self.device)

    def run(self) -> None:
        """All parts, those first that say most."""
        self._read_state("before")
        for name, part in (("ceilings", self._measure_ceilings), (WHOLE, self._time_step), ("trace", self._trace)):
            with self.report.case(part=name):
                part()
        self._time_ops()
        self._read_state("after")
        if self.options.ncu:
            with self.report.case(part="ncu"):
                self._count_bytes()

    def _note(self, text: str) -> None:
        self.facts["notes"].append(text)
        print(text, flush=True)

    def _show(self, name: str, rows: list[dict[str, Any]]) -> None:
        self.facts[name] = rows
        print(*table(rows), sep="\n", flush=True)

    def _read_state(self, when: str) -> None:
        if self.gpu.why_not and self.on_gpu and when == "before":
            self._note(f"clocks, power and temperature: not read, {self.gpu.why_not}")
        elif not self.gpu.why_not:
            self.facts.setdefault("gpu_state", {})[when] = self.gpu.read()

    def _measure_ceilings(self) -> None:
        self.facts["ceilings"] = self.limits = roofline.ceilings(self.device, self.step.model.dtype)

    def _row(self, name: str, spread: Spread, calls: int, known: cost.OpCost | None) -> dict[str, Any]:
        against = roofline.references(self.device, self.limits, self.facts.get("specified_GB/s"))
        unit = "TFLOP/s" if self.on_gpu else "GFLOP/s"
        return roofline.row(name, spread, calls, known, self.limits, against, unit)

    def _time_step(self) -> None:
        spread = self.step.seconds(self.options.repeats, lambda: self._read_state("under load"))
        each = self.costs.values()
        whole = cost.OpCost(WHOLE, sum(c.flops for c in each), sum(c.read for c in each), sum(c.written for c in each))
        self.report.row({**self._row(WHOLE, spread, 1, whole), "tok/s": self.options.batch / spread.median})

    def _trace(self) -> None:
        trace = self.step.trace(self.options.steps)
        self._show("steps", step_rows(trace))
        if self.on_gpu:
            self._tell_trace(trace)
        if self.options.trace:
            with self.report.case(part="trace file"):
                self.options.trace.write_text(json.dumps(trace))

    def _tell_trace(self, trace: dict[str, Any]) -> None:
        if found := steps(trace):
            self._tell_kernels("kernels", self._attributed(found))
        else:
            self._note(
                f"no kernels by step: {len(device_events(trace))} things ran on the GPU by the trace, from "
                f"{len(graph_launches(trace))} graphs; may this process use the GPU's counters (CUPTI)?"
            )

    def _attributed(self, found: list[list[Event]]) -> list[list[tuple[Label, Event]]]:
        with self.report.case(part="attribution"):
            try:
                expected = attribution.launches(self.step.plan(), self.step.places())
                labelled = [attribution.attributed(events, expected) for events in found]
                self.in_step = op_times(labelled)
                return labelled
            except attribution.Mismatch as error:
                self._note(f"kernels are not told apart by op and layer: {error}")
        return [attribution.by_name(events) for events in found]

    def _tell_kernels(self, what: str, labelled: list[list[tuple[Label, Event]]]) -> None:
        events = [[event for _, event in step] for step in labelled]
        self.facts["events"] = what
        self.facts["step_us"] = sum(map(span, events)) / len(events)
        self.facts["gaps_us"] = sum(sum(gaps(each)) for each in events) / len(events)
        self._show("kernels", kernel_rows(labelled))
        waits = "; waits for the kernel before are in no kernel's us" if self.on_gpu else ""
        print(f"{self.facts['step_us']:.4g} us, {self.facts['gaps_us']:.4g} of them gaps{waits}", flush=True)

    def _time_ops(self) -> None:
        plan, where, repeats = self.step.plan(), self.step.places(), self.options.repeats
        names = [place.op for place in where]
        if not self.on_gpu:
            with self.report.case(part="ops"):
                times, seen = times_on_cpu(plan, [self.step.label(place) for place in where], repeats)
                self._tell_kernels("ops", seen)
                for name, spread in times.items():
                    self._tell_op(name, spread, names.count(name))
            return
        for name in dict.fromkeys(names):
            with self.report.case(op=name):
                calls = [op for each, op in zip(names, plan, strict=True) if each == name]
                self._tell_op(name, time_on_gpu(calls, repeats), len(calls))

    def _tell_op(self, name: str, spread: Spread, calls: int) -> None:
        known = self.costs.get(name)
        row = self._row(name, spread, calls, known)
        if us := self.in_step.get(name):
            row["in_step_us"] = us
            if known and "specified_GB/s" in self.facts:
                row["in_step_of_specified"] = known.bytes / us / 1e3 / self.facts["specified_GB/s"]
        self.report.row(row)

    def _count_bytes(self) -> None:
        if not self.on_gpu:
            self._note("bytes not counted: ncu counts on a GPU only")
            return
        expected, chosen = attribution.launches(self.step.plan(), self.step.places()), self.options
        del self.step  # ncu's child needs the memory for weights of its own
        gc.collect()
        torch.cuda.empty_cache()
        words = [
            str(SCRIPT), "--preset", chosen.preset, "--kind", chosen.kind, "--batch", str(chosen.batch),
            "--context", str(chosen.context), "--device", self.device, "--tuned", chosen.tuned,
            "--nvtx", "--capture_steps", "1:2",
        ]  # fmt: skip
        try:
            self._show("dram", ncu.rows(ncu.count(words), expected, self.costs))
        except (ncu.NcuFailed, attribution.Mismatch) as error:
            self._note(f"bytes not counted: {error}")
