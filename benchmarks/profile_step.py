"""One decode step, taken apart: its kernels and the gaps between them, and how near each op comes to the roofline.

The name is not profile.py: a file of that name beside scripts would shadow the standard library's `profile`, which cProfile
imports, and torch cProfile. Kernels and gaps are those of a trace of consecutive steps on a GPU; the CPU has no kernel events,
there each op of the plan counts as one. Weights and cache are random, and every repeat is the step at the same context. A part
that fails, or that this machine does not allow, costs itself alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import attribution
import compare
import marked_steps
import ncu
import roofline
import summary
import torch
from cards import card_of
from common import Spread, device_name, parser
from decode_step import DecodeStep, time_on_gpu, times_on_cpu
from gpu_state import GpuState
from models import KINDS, random_model
from reports import Report, table
from roofline import WHOLE
from shapes import PRESETS
from trace_events import Event, Label, gaps, kernel_rows, op_times, span, step_rows, steps

from baize_engine import backend
from baize_engine.kernels import tuned
from baize_engine.model import cost

EPILOG = """
other profilers, of the step numbered 2 (the first two compile and warm up):
  nsys profile --capture-range=cudaProfilerApi -t cuda,nvtx -o step \\
      python benchmarks/profile_step.py --preset 13b --capture_steps 2:3
  ncu --profile-from-start off --clock-control none --cache-control none --set full --nvtx -o step \\
      python benchmarks/profile_step.py --preset 13b --capture_steps 2:3 --nvtx
with --nvtx ops are launched one by one within ranges of layers and ops; without it a step is a graph, as the engine runs it
"""


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
        return roofline.row(name, spread, calls, known, self.limits, against)

    def _time_step(self) -> None:
        spread = self.step.seconds(self.options.repeats, lambda: self._read_state("under load"))
        each = self.costs.values()
        whole = cost.OpCost(WHOLE, sum(c.flops for c in each), sum(c.read for c in each), sum(c.written for c in each))
        self.report.row({**self._row(WHOLE, spread, 1, whole), "tok/s": self.options.batch / spread.median})

    def _trace(self) -> None:
        trace = self.step.trace(self.options.steps)
        if self.options.trace:
            self.options.trace.write_text(json.dumps(trace))
        self._show("steps", step_rows(trace))
        if not self.on_gpu:
            return
        found = steps(trace)
        if found:
            self._tell_kernels("kernels", self._attributed(found))
        else:
            self._note("the profiler recorded no kernel of a graph: may this process use the GPU's counters (CUPTI)?")

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
        print(f"{self.facts['step_us']:.4g} us, {self.facts['gaps_us']:.4g} of them gaps; waits are in no kernel's us")

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
        if name in self.in_step:
            row["in_step_us"] = self.in_step[name]
            if known and "specified_GB/s" in self.facts:
                row["in_step_of_specified"] = known.bytes / self.in_step[name] / 1e3 / self.facts["specified_GB/s"]
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
            str(Path(__file__).resolve()), "--preset", chosen.preset, "--kind", chosen.kind, "--batch", str(chosen.batch),
            "--context", str(chosen.context), "--device", self.device, "--nvtx", "--capture_steps", "1:2",
        ]  # fmt: skip
        try:
            self._show("dram", ncu.rows(ncu.count(words), expected, self.costs))
        except (ncu.NcuFailed, attribution.Mismatch) as error:
            self._note(f"bytes not counted: {error}")


def profile(options: argparse.Namespace, device: str, report: Report) -> None:
    """Makes the step and takes it apart."""
    facts = report.facts
    facts["notes"] = []
    if device != "cpu":
        card = card_of(device_name(device))
        if card is None:
            facts["notes"].append(f"card not in the table (benchmarks/cards.py): {device_name(device)}")
        else:
            facts |= {"card": card.name, "specified_GB/s": card.bandwidth}
    with torch.inference_mode():
        step = None
        with report.case(part="model"):
            begin = time.perf_counter()
            model = random_model(PRESETS[options.preset], options.kind, device)
            roofline.synchronize(device)
            facts["start"] = {"weights_s": time.perf_counter() - begin}
            step = DecodeStep.of(model, options.batch, options.context)
            facts["start"]["first_step_s"] = step.first_s
            if device != "cpu":
                facts["settings"] = tuned.table(torch.device(device)).name
                facts["start"] |= {"capture_s": step.again_s, "compile_s": step.first_s - step.again_s}
                facts["memory"] = {
                    "held_GB": torch.cuda.memory_allocated(device) / 1e9,
                    "peak_GB": torch.cuda.max_memory_allocated(device) / 1e9,
                    "reserved_GB": torch.cuda.max_memory_reserved(device) / 1e9,
                }
            del model
        if step is not None:
            taken = Profile(step, options, report)
            del step  # `taken` alone holds it
            taken.run()


def options() -> argparse.ArgumentParser:
    made = parser(__doc__.split("\n")[0])
    made.epilog = EPILOG
    made.formatter_class = _Help
    made.add_argument("--preset", choices=PRESETS, default="125m")
    made.add_argument("--kind", choices=KINDS, default="float16")
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--context", type=int, default=128)
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--repeats", type=int, default=50, help="timed repeats of the step and of each op")
    made.add_argument("--steps", type=int, default=4, help="consecutive steps in the trace")
    made.add_argument("--trace", type=Path, metavar="FILE", help="write their chrome trace there")
    made.add_argument("--picture", type=Path, metavar="FILE", help="draw the roofline there (matplotlib)")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write a summary for people there")
    made.add_argument(
        "--ncu", action="store_true", help="count the bytes of each kernel with ncu, if it is on the PATH"
    )
    made.add_argument(
        "--from_json", type=Path, metavar="FILE", help="measure nothing; --picture, --markdown of this report"
    )
    made.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="measure nothing; two reports side by side"
    )
    made.add_argument("--capture_steps", type=marked_steps.step_range, metavar="A:B", help="see below")
    made.add_argument("--nvtx", action="store_true", help="see below")
    return made


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the commands below as they are."""


def main() -> int:
    known = options()
    chosen = known.parse_args()
    if (
        min(chosen.batch, chosen.repeats, chosen.steps) < 1
        or not 2 <= chosen.context <= PRESETS[chosen.preset].positions
    ):
        most = PRESETS[chosen.preset].positions
        known.error(f"--batch, --repeats, --steps must be 1 or more, --context 2 to {most}")
    if chosen.picture:
        roofline.figure_class()
    if chosen.compare:
        compare.show(*map(compare.read, chosen.compare), chosen.json)
        return 0
    if chosen.from_json:
        if not (chosen.picture or chosen.markdown):
            known.error("--from_json needs --picture or --markdown")
        report = compare.read(chosen.from_json)
        for part, path in (("markdown", chosen.markdown), ("picture", chosen.picture)):
            if path:
                write(part, report, path)
        return 0
    device = backend.resolve_device(chosen.device)
    marked = chosen.nvtx or chosen.capture_steps is not None
    if marked and device == "cpu":
        known.error("--nvtx and --capture_steps are for the profilers of a GPU, the device is cpu")
    if device != "cpu":
        torch.cuda.set_device(device)
    title = f"decode step: {chosen.preset} {chosen.kind}, batch {chosen.batch}, context {chosen.context}"
    facts = {"title": title, **{key: getattr(chosen, key) for key in ("preset", "kind", "batch", "context")}}
    if marked:
        with torch.inference_mode():
            model = random_model(PRESETS[chosen.preset], chosen.kind, device)
            step = DecodeStep.of(model, chosen.batch, chosen.context)
            marked_steps.run(step, chosen.capture_steps or range(2, 3), by_op=chosen.nvtx)
        return 0
    with Report("profile_step", chosen, device, facts) as report:
        profile(chosen, device, report)
        for part, path in (("markdown", chosen.markdown), ("picture", chosen.picture)):
            if path:
                with report.case(part=part):
                    write(part, report.whole(), path)
    return report.code


def write(part: str, report: dict[str, Any], path: Path) -> None:
    """The summary or the picture of a report."""
    if part == "markdown":
        path.write_text(summary.markdown(report))
    else:
        roofline.draw(report, path)


if __name__ == "__main__":
    sys.exit(main())
