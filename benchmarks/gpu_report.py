"""`make gpu`: what this machine's GPU says of the project, in one file. Makes no environment and touches no network.

The C++ kernels' tests for every instruction set of the host, the tests marked gpu, and a named part of the benchmarks at the
shapes of 7B and 13B; written to benchmarks/results/<gpu>.json, with a trace and a roofline picture beside it. A step that fails
or runs out of time is reported with the end of its output and does not stop the others; the exit code tells.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import commit, device_name, versions

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
TAIL = 4000  # characters of a failed step's output that are kept


@dataclass(frozen=True)
class Step:
    """A command, relative to the repository, and the seconds it may take. A benchmark's last line is its report."""

    name: str
    command: tuple[str, ...]
    seconds: int
    is_benchmark: bool = True


def tests(name: str, *arguments: str) -> Step:
    return Step(name, ("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments), 180, is_benchmark=False)


def bench(name: str, script: str, arguments: str, seconds: int) -> Step:
    return Step(name, (f"benchmarks/{script}", *arguments.split()), seconds)


def steps(out: Path) -> list[Step]:
    """The standard set: under 8 minutes together on an H100, by their bytes and operations; each has its own limit."""
    picture = f"--trace {out}.trace.json" + (f" --picture {out}.png" if has_matplotlib() else "")
    return [
        tests("csrc", "tests/test_diff_add_cpp.py"),
        tests("gpu", "-m", "gpu", "tests"),
        bench("kernels 13b", "bench_kernels.py", "--preset 13b --quick", 90),
        bench("decode 13b", "bench_decode.py", "--preset 13b --batches 1 8 64 --contexts 128 --steps 40 --runs 2", 90),
        bench(
            "decode 13b, 2048", "bench_decode.py", "--preset 13b --batches 1 --contexts 2048 --steps 40 --runs 2", 60
        ),
        bench("decode 7b", "bench_decode.py", "--preset 7b --batches 1 64 --contexts 128 --steps 40 --runs 2", 60),
        bench("prefill 13b", "bench_prefill.py", "--preset 13b --kinds float16 --tokens 512 2048", 60),
        bench("profile 13b", "profile_step.py", f"--preset 13b {picture}", 90),
    ]


def has_matplotlib() -> bool:
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def run(step: Step, shown: bool = True) -> dict[str, Any]:
    """What became of a step: its exit code (None: out of time), seconds, and the report or the end of the output.

    `shown`: whether the output of one that succeeds is printed.
    """
    begin = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, *step.command]
    try:
        done = subprocess.run(
            command, cwd=REPO, env=environment, timeout=step.seconds, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        code, output = None, said.decode(errors="replace") if isinstance(said, bytes) else said
    if shown or code != 0:
        print(output[-TAIL:] if code != 0 or not step.is_benchmark else output.rpartition("\n{")[0], flush=True)
    found: dict[str, Any] = {"code": code, "seconds": round(time.perf_counter() - begin, 1)}
    if code == 0 and step.is_benchmark:
        return {**found, "report": json.loads(output.splitlines()[-1])}
    return {**found, "output": output[-TAIL:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="STEP", help="steps by name")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="default: benchmarks/results/<gpu>.json")
    chosen = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("make gpu needs a GPU that torch can use; here torch.cuda.is_available() is False")
    slug = re.sub(r"[^a-z0-9]+", "-", device_name("cuda").lower()).strip("-")
    out = chosen.out or HERE / "results" / f"{slug}.json"
    return collect(steps(out.with_suffix("")), out, chosen.only, device_name("cuda"))


def collect(all_steps: list[Step], out: Path, only: list[str] | None, device: str) -> int:
    """Runs the steps, writing what is known after each one; 1 where one failed."""
    unknown = set(only or ()) - {step.name for step in all_steps}
    if unknown:
        raise SystemExit(f"no step {sorted(unknown)[0]!r}, wanted some of {[step.name for step in all_steps]}")
    whole: dict[str, Any] = {
        "bench": "gpu", "device": device, "commit": commit(), "versions": versions("torch", "triton", "numpy"), "steps": {},
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    for step in all_steps:
        if only and step.name not in only:
            continue
        print(f"== {step.name}: {' '.join(step.command)}", flush=True)
        whole["steps"][step.name] = run(step)
        out.write_text(json.dumps(whole, indent=1) + "\n")
    failed = [name for name, found in whole["steps"].items() if found["code"] != 0]
    seconds = sum(found["seconds"] for found in whole["steps"].values())
    print(
        f"{out}: {len(whole['steps'])} steps in {seconds:.0f} s" + (f", failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
