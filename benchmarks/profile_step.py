"""Profiles one decode step: its kernels, the gaps between them, and how near each op comes to the roofline.

The name is not profile.py: a file of that name beside scripts would shadow the standard library's `profile`, which cProfile
imports, and torch cProfile. Kernels and gaps are those of a trace of consecutive steps on a GPU; the CPU has no kernel events,
there each op of the plan counts as one. Weights and cache are random, and every repeat is the step at the same context. A part
that fails, or that this machine does not allow, costs itself alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import compare
import launch_table
import marked_steps
import roofline
import summary
import torch
from cards import card_of
from common import device_name, parser
from compilations import Compilations
from decode_step import DecodeStep
from models import KINDS, random_model
from profile_parts import Profile
from reports import Report
from shapes import PRESETS

from baize_engine.backend import devices

EPILOG = """
other profilers, of the step numbered 2 (all is compiled before; steps 0 and 1 warm up):
  nsys profile --capture-range=cudaProfilerApi -t cuda,nvtx -o step \\
      python benchmarks/profile_step.py --preset 13b --capture_steps 2:3
  ncu --profile-from-start off --clock-control none --cache-control none --set full --nvtx -o step \\
      python benchmarks/profile_step.py --preset 13b --capture_steps 2:3 --nvtx
with --nvtx ops are launched one by one within ranges of layers and ops; without it a step is a graph, as the engine runs it
"""

FILES = ("json", "trace", "markdown", "picture")  # options that name a file to write
MAKES = {  # what can be written where nothing is measured
    "compare": ("json", "markdown"), "from_json": ("markdown", "picture"), "capture_steps": (), "nvtx": (),
}  # fmt: skip


def profile(options: argparse.Namespace, device: str, report: Report) -> None:
    """Makes the step and takes it apart."""
    facts = report.facts
    facts["notes"] = []
    if device != "cpu":
        card = card_of(device_name(device))
        if card is None:
            facts["notes"].append(f"card not in the table (benchmarks/cards.py): {device_name(device)}")
            print(*facts["notes"], flush=True)
        else:
            facts |= {"card": card.name, "specified_GB/s": card.bandwidth}
    with torch.inference_mode():
        step = None
        with report.case(part="model"):
            begin = time.perf_counter()
            model = random_model(PRESETS[options.preset], options.kind, device)
            roofline.synchronize(device)
            facts["start"] = {"weights_s": time.perf_counter() - begin}
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats(device)  # what making the weights took on the way is not a step's
            compilations = Compilations()
            with compilations if device != "cpu" else nullcontext():
                step = DecodeStep.of(model, options.batch, options.context)
            facts["start"]["first_step_s"] = step.first_s
            if device != "cpu":
                facts["start"] |= {
                    "second_state_s": step.second_s, "kernels": str(compilations), "compile_s": compilations.seconds,
                }  # fmt: skip
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
    launch_table.add_option(made)
    made.add_argument("--repeats", type=int, default=50, help="timed repeats of the step and of each op")
    made.add_argument("--steps", type=int, default=4, help="consecutive steps in the trace")
    made.add_argument("--trace", type=Path, metavar="FILE", help="write their chrome trace there")
    made.add_argument("--picture", type=Path, metavar="FILE", help="draw the roofline there (matplotlib)")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write a readable summary there")
    made.add_argument(
        "--ncu", action="store_true", help="count the bytes of each kernel with ncu, if it is on the PATH"
    )
    finished = made.add_mutually_exclusive_group()
    finished.add_argument(
        "--from_json", type=Path, metavar="FILE", help="measure nothing; --picture, --markdown of this report"
    )
    finished.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A", "B"),
        help="measure nothing; two reports side by side, also to --json, --markdown",
    )
    made.add_argument(
        "--capture_steps", type=marked_steps.step_range, metavar="A:B", help="run steps for another profiler, see below"
    )
    made.add_argument("--nvtx", action="store_true", help="the same, step 2 unless --capture_steps, with NVTX ranges")
    return made


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the commands below as they are."""


def check(known: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Refuses, before anything is measured, what cannot be done."""
    most = PRESETS[chosen.preset].positions
    if min(chosen.batch, chosen.repeats, chosen.steps) < 1 or not 2 <= chosen.context <= most:
        known.error(f"--batch, --repeats, --steps must be 1 or more, --context 2 to {most}")
    files = {name: path for name in FILES if (path := getattr(chosen, name))}
    for name, path in files.items():
        if not path.parent.is_dir() or path.is_dir():
            wrong = "is a folder, wanted a file" if path.is_dir() else f"the folder {path.parent} does not exist"
            known.error(f"--{name} {path}: {wrong}")
    if chosen.from_json and not pages(chosen):
        known.error("--from_json needs --picture or --markdown")
    for way, makes in MAKES.items():
        if getattr(chosen, way) and (left := [f"--{name}" for name in files if name not in makes]):
            known.error(f"--{way} makes no file for {', '.join(left)}")
    if chosen.picture:
        roofline.figure_class()


def main() -> int:
    known = options()
    chosen = known.parse_args()
    check(known, chosen)
    if chosen.compare:
        compare.show(*map(compare.read, chosen.compare), chosen.json, chosen.markdown)
        return 0
    if chosen.from_json:
        found = compare.read(chosen.from_json)
        for _, write in pages(chosen):
            write(found)
        return 0
    device = devices.resolve_device(chosen.device)
    marked = chosen.nvtx or chosen.capture_steps is not None
    if marked and device == "cpu":
        known.error("--nvtx and --capture_steps are for the profilers of a GPU, the device is cpu")
    if device != "cpu":
        torch.cuda.set_device(torch.device(device).index or 0)  # it demands an index, which "cuda" lacks
    title = f"decode step: {chosen.preset} {chosen.kind}, batch {chosen.batch}, context {chosen.context}"
    facts = {"title": title, **{key: getattr(chosen, key) for key in ("preset", "kind", "batch", "context")}}
    if marked:
        with torch.inference_mode(), launch_table.in_use(chosen.tuned, device):
            model = random_model(PRESETS[chosen.preset], chosen.kind, device)
            step = DecodeStep.of(model, chosen.batch, chosen.context)
            print(marked_steps.run(step, chosen.capture_steps or range(2, 3), by_op=chosen.nvtx))
        return 0
    with launch_table.in_use(chosen.tuned, device) as table, Report("profile_step", chosen, device, facts) as report:
        if device != "cpu":
            report.facts["tuned"] = table
        profile(chosen, device, report)
        for part, write in pages(chosen):
            with report.case(part=part):
                write(report.whole())
    return report.code


def pages(chosen: argparse.Namespace) -> list[tuple[str, Callable[[dict[str, Any]], object]]]:
    """What is to be made of a report, and how."""
    found: list[tuple[str, Callable[[dict[str, Any]], object]]] = []
    if chosen.markdown:
        found.append(("markdown", lambda report: chosen.markdown.write_text(summary.markdown(report))))
    if chosen.picture:
        found.append(("picture", lambda report: roofline.draw(report, chosen.picture)))
    return found


if __name__ == "__main__":
    sys.exit(main())
