"""`make gpu`: what this machine's GPU says of the project, in one file. Makes no environment and touches no network.

The extension is built, then come the C++ kernels' tests for every instruction set of the host, the tests marked gpu, and a
named part of the benchmarks at the shapes of 7B and 13B; written to benchmarks/results/<gpu>.json, with a trace and a roofline
picture beside it. A step that fails or runs out of time is reported with the end of its output and does not stop the others;
the exit code tells. The whole has 8 minutes: a step may take its own seconds and those that the steps before it left over.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import commit, device_name, versions

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
TAIL = 4000  # characters of a failed step's output that are kept
BUDGET = 8 * 60  # seconds of all steps together
PROCESSES = 6  # of a step of tests, whose time is mostly compiling, where the machine has pytest-xdist


@dataclass(frozen=True)
class Step:
    """A command, relative to the repository, and the seconds set aside for it. A benchmark's last line is its report."""

    name: str
    command: tuple[str, ...]
    seconds: int
    is_benchmark: bool = True


def tests(name: str, seconds: int, *arguments: str) -> Step:
    side_by_side = ("-n", str(min(PROCESSES, os.cpu_count() or 1))) if has("xdist") else ()
    return Step(name, ("-m", "pytest", "-q", "-p", "no:cacheprovider", *side_by_side, *arguments), seconds, False)


def bench(name: str, seconds: int, call: str, *paths: str) -> Step:
    """`call`: script and options, a blank between words; `paths` may hold blanks."""
    script, *options = call.split()
    return Step(name, (f"benchmarks/{script}", *options, *paths), seconds)


def steps(out: Path) -> list[Step]:
    """The standard set; `out`: the result's path without its suffix. The seconds are estimates for an H100, by bytes,
    operations and kernels to compile; no run has confirmed them yet."""
    few = "--steps 40 --runs 2"
    files = ["--json", str(profile(out)), "--trace", f"{out}.trace.json"]
    if has("matplotlib"):
        files += ["--picture", f"{out}.png"]
    return [
        Step("build", ("setup.py", "--quiet", "build_ext", "--inplace"), 75, is_benchmark=False),
        tests(
            "csrc",
            45,
            "tests/test_diff_add_cpp.py",
            "tests/test_decoder_cpp.py",
            "tests/test_quantize_cpp.py",
            "tests/test_sample_cpp.py",
        ),
        tests("gpu", 100, "-m", "gpu", "tests"),
        bench("kernels 13b", 40, "bench_kernels.py --preset 13b --quick"),
        bench("decode 13b", 85, f"bench_decode.py --preset 13b --batches 1 8 64 --contexts 128 {few}"),
        bench("decode 13b, 2048", 30, f"bench_decode.py --preset 13b --batches 1 --contexts 2048 {few}"),
        bench("decode 7b", 50, f"bench_decode.py --preset 7b --batches 1 64 --contexts 128 {few}"),
        bench("prefill 13b", 25, "bench_prefill.py --preset 13b --kinds float16 --tokens 512 2048"),
        bench("profile 13b", 30, "profile_step.py --preset 13b", *files),
    ]


def profile(out: Path) -> Path:
    """Where the profile's own report goes, which `profile_step.py --from_json` draws."""
    return Path(f"{out}.profile.json")


def has(package: str) -> bool:
    return find_spec(package) is not None


def notes(out: Path) -> list[str]:
    """What the standard set leaves out on this machine, and the remedy."""
    if has("matplotlib"):
        return []
    draw = f"python benchmarks/profile_step.py --from_json {profile(out)} --picture {out}.png"
    return [f"no roofline picture: matplotlib is not installed here; where it is, `{draw}` draws it"]


def run(step: Step, seconds: float, shown: bool = True) -> dict[str, Any]:
    """What became of a step that may take `seconds`: its exit code (None: out of time), the seconds it took, what went wrong
    ("problem", absent where nothing did), and the report or the end of the output.

    `shown`: whether the output of a benchmark that succeeds is printed.
    """
    begin = time.perf_counter()
    before = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), *([before] if before else [])])}
    environment.pop("TRITON_INTERPRET", None)
    with subprocess.Popen(
        [sys.executable, *step.command], cwd=REPO, env=environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        code: int | None = None
        try:
            said, warned = process.communicate(timeout=seconds)
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it started, such as a compiler
            said, warned = process.communicate()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    found: dict[str, Any] = {"code": code, "seconds": round(time.perf_counter() - begin, 1)}
    if code is None:
        found["problem"] = f"out of time after {seconds:.0f} s"
    elif code != 0:
        found["problem"] = f"exit code {code}"
    elif step.is_benchmark:
        said, report = parted(said)
        if report is not None:
            if shown:
                print(said, warned[-TAIL:], sep="\n", flush=True)
            return {**found, "report": report}
        found["problem"] = "no JSON object among the lines of its output"
    found["output"] = (said + warned)[-TAIL:]
    print(found["output"], flush=True)
    return found


def parted(output: str) -> tuple[str, dict[str, Any] | None]:
    """A benchmark's output before its report, and the report: the last line that is a JSON object."""
    lines = output.splitlines()
    for number in reversed(range(len(lines))):
        if lines[number].startswith("{"):
            try:
                return "\n".join(lines[:number]), json.loads(lines[number])
            except json.JSONDecodeError:
                continue
    return output, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="STEP", help="steps by name")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="default: benchmarks/results/<gpu>.json")
    chosen = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("make gpu needs a GPU that torch can use; here torch.cuda.is_available() is False")
    slug = re.sub(r"[^a-z0-9]+", "-", device_name("cuda").lower()).strip("-")
    out = (chosen.out or HERE / "results" / f"{slug}.json").resolve()
    stem = out.with_suffix("")
    return collect(steps(stem), out, chosen.only, device_name("cuda"), notes(stem))


def collect(
    all_steps: list[Step], out: Path, only: list[str] | None, device: str, notes: list[str], budget: float = BUDGET
) -> int:
    """Runs the steps, writing what is known after each one; 1 where one failed, or all together took more than `budget`."""
    unknown = set(only or ()) - {step.name for step in all_steps}
    if unknown:
        raise SystemExit(f"no step {sorted(unknown)[0]!r}, wanted some of {[step.name for step in all_steps]}")
    begin, allowed = time.perf_counter(), 0.0
    whole: dict[str, Any] = {
        "bench": "gpu", "device": device, "commit": commit(), "versions": versions("torch", "triton", "numpy"),
        "budget_s": budget, "seconds": 0.0, "notes": notes, "steps": {},
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    for step in all_steps:
        if only and step.name not in only:
            continue
        print(f"== {step.name}: {' '.join(step.command)}", flush=True)
        allowed += step.seconds
        whole["steps"][step.name] = run(step, allowed - (time.perf_counter() - begin))
        whole["seconds"] = round(time.perf_counter() - begin, 1)
        out.write_text(json.dumps(whole, indent=1) + "\n")
    problems = [f"{name}: {found['problem']}" for name, found in whole["steps"].items() if "problem" in found]
    if whole["seconds"] > budget:
        problems.append(f"all together took {whole['seconds']:.0f} s, wanted {budget:.0f} at most")
    print(f"{out}: {len(whole['steps'])} steps in {whole['seconds']:.0f} s", *notes, sep="\n")
    for problem in problems:
        print(f"FAILED {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
