"""`make gpu`: all measurements and tests of this machine's GPU, in one file. Makes no environment and touches no network.

The steps, in the order of benchmarks/gpu_plan.py (`--list`), are benchmarks at the shapes of 7B and 13B, the tests marked gpu,
the tuner, and the C++ kernels' tests. Everything is in gpu.json, rewritten after each step, and all that the steps said in
gpu.log; the profile's own files lie beside them, and in a folder of `--out` the tuned table. A step that fails or runs out of
time keeps the rows it had and does not stop the others; the exit code tells. A step may take its own seconds and those that
steps before it left over.

`--rehearse` runs every step in its smallest form without a GPU: an import, option or report that fails is found before the day.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from common import REHEARSAL, UNKNOWN, commit, device_name, versions
from gpu_plan import BUILD, GROUPS, REHEARSED, REPO, RUNNING, TUNED, Place, Step, chosen, has, listing, steps
from gpu_run import run
from reports import INTERRUPTED

RESULTS = REPO / "benchmarks" / "results"
TABLES = REPO / "kernels" / "tuned"


def in_folder(folder: Path) -> Place:
    return lambda name: folder / name


def in_repository(gpu: str) -> Place:
    """Beside other results, by the GPU's name; the tuned table where launches find it."""

    def place(name: str) -> Path:
        return TABLES / f"{gpu}.json" if name == TUNED else RESULTS / f"{gpu}-{name}"

    return place


def notes(place: Place) -> list[str]:
    """What the plan leaves out on this machine or to its user, and the remedy."""
    found = []
    if place(TUNED).parent != TABLES:
        found.append(
            f"where {TUNED} is written, launches go by it once it lies in {TABLES.relative_to(REPO)}/ as <gpu>.json"
        )
    if not has("matplotlib"):
        draw = f"python benchmarks/profile_step.py --from_json {place('profile.json')} --picture {place('profile.png')}"
        found.append(f"no roofline picture: matplotlib is not installed here; where it is, `{draw}` draws it")
    if not has("xdist"):
        found.append("tests in one process: pytest-xdist is not installed here, and they may run out of time")
    return found


def stale(step: Step, done: Sequence[Step], since: float) -> str | None:
    """What is wrong where a file that a step needs was to be written by one of this call, and is of an earlier one."""
    for path in step.needs:
        if any(str(path) in before.command for before in done) and path.exists() and path.stat().st_mtime < since:
            return f"it needs {path.name}, and what is there is of an earlier call"
    return None


def collect(
    some: Sequence[Step], place: Place, device: str, notes: Sequence[str] = (), budget: float | None = None,
    known: str | None = None,
) -> int:  # fmt: skip
    """Runs the steps, writing what is known after each one; 1 where one failed, or all together took more than `budget` (the
    sum of theirs), 130 after Ctrl-C. Of an earlier call on this device and commit the steps that are not run again stay."""
    begin, since, left, code = time.perf_counter(), time.time(), 0.0, 0
    budget = sum(step.seconds for step in some) if budget is None else budget
    whole: dict[str, Any] = {
        "bench": "gpu", "device": device, "commit": known or commit(), "versions": versions("torch", "triton", "numpy"),
        "budget_s": budget, "seconds": 0.0, "notes": list(notes), "steps": {},
    }  # fmt: skip
    out, log = place("gpu.json"), place("gpu.log")
    out.parent.mkdir(parents=True, exist_ok=True)
    whole["steps"] = earlier(out, whole)
    problems = []
    for number, step in enumerate(some):
        head = f"== {step.name}: {' '.join(step.command)}"
        print(head, flush=True)
        with open(log, "a") as file:
            print(head, file=file)
        problem = stale(step, some[:number], since)
        found = (
            {"code": None, "seconds": 0.0, "problem": problem} if problem else run(step, step.seconds + left, log=log)
        )
        left = max(0.0, left + step.seconds - found["seconds"])
        whole["steps"].pop(step.name, None)  # so that the order is that of the runs
        whole["steps"][step.name] = found
        whole["seconds"] = round(time.perf_counter() - begin, 1)
        part = place("gpu.json.part")
        part.write_text(json.dumps(whole, indent=1) + "\n")
        os.replace(part, out)
        place(RUNNING).unlink(missing_ok=True)
        if "problem" in found:
            problems.append(f"{step.name}: {found['problem']}")
            problems += [f"  {name}" for name in found.get("tests", {}).get("failed", [])]
        if found.get("problem") == "interrupted":
            code = INTERRUPTED
            break
        if step.name == BUILD and "problem" in found:
            break  # nothing runs without the extension
    if whole["seconds"] > budget:
        problems.append(f"all together took {whole['seconds']:.0f} s, wanted {budget:.0f} at most")
    print(f"{out}: {len(some)} steps in {whole['seconds']:.0f} s", *notes, sep="\n")
    for problem in problems:
        print(f"FAILED {problem}")
    return code or (1 if problems else 0)


def built() -> bool:
    """Whether the extension is in this tree: it does not travel with it."""
    return any((REPO / "baize_engine" / f"_C{suffix}").exists() for suffix in EXTENSION_SUFFIXES)


def earlier(out: Path, whole: dict[str, Any]) -> dict[str, Any]:
    """The steps of the file at `out` where it is of the same device, commit and versions, else none."""
    if not out.exists():
        return {}
    try:
        before = json.loads(out.read_text())
    except json.JSONDecodeError as error:
        raise SystemExit(f"{out}: {error}, wanted the report of an earlier call, or no file") from error
    same = all(before.get(key) == whole[key] for key in ("bench", "device", "commit", "versions"))
    return dict(before["steps"]) if same and whole["commit"] != UNKNOWN else {}


def rehearsal(some: Sequence[Step]) -> tuple[list[Step], list[str]]:
    """The steps in their smallest form, and what is said of those that have none here."""
    made = [replace(step, command=step.rehearsal, seconds=REHEARSED) for step in some if step.rehearsal]
    return made, [
        f"{step.name} is not rehearsed: pybind11 is not installed here" for step in some if not step.rehearsal
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--steps", nargs="+", metavar="STEP", default=[], help=f"by name, or groups: {', '.join(GROUPS)}"
    )
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FOLDER", help="for all files; default: benchmarks/results/<gpu>-*"
    )
    parser.add_argument("--commit", default=None, metavar="ID", help="of this code, where the tree itself does not say")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="print the plan and its seconds, run nothing")
    instead.add_argument("--rehearse", action="store_true", help="run the smallest form of each step, on the CPU")
    options = parser.parse_args()

    def plan(place: Place, words: Sequence[str] = options.steps) -> list[Step]:
        try:
            return chosen(steps(place), words)
        except ValueError as error:
            parser.error(f"--steps: {error}")

    if options.list:
        place = in_folder(options.out or Path("OUT"))
        for words in [options.steps] if options.steps else [[group] for group in GROUPS]:
            print(*listing(" ".join(words), plan(place, words)), sep="\n")
        return 0
    # The step ends, and its rows are written. A shell starts what runs in the background with SIGINT ignored, steps included.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if options.rehearse:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", REHEARSAL: "1"}
        with nullcontext(options.out) if options.out else tempfile.TemporaryDirectory() as folder:
            place = in_folder(Path(folder).resolve())
            some, said = rehearsal(plan(place))
            return collect(some, place, device_name(), said)
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("make gpu needs a GPU that torch can use; here torch.cuda.is_available() is False")
    name = device_name("cuda")
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    place = in_folder(options.out.resolve()) if options.out else in_repository(slug)
    some = plan(place)
    if not built() and BUILD not in [step.name for step in some]:
        some = [*(step for step in plan(place, ()) if step.name == BUILD), *some]
    return collect(some, place, name, notes(place), known=options.commit)


if __name__ == "__main__":
    sys.exit(main())
