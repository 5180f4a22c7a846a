"""`make gpu` without a GPU: its steps as such, and what it says of machines and steps that cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gpu_report
import pytest
import torch
from assets import REPO
from gpu_report import Step


def python(name: str, code: str, seconds: int = 60, is_benchmark: bool = True) -> Step:
    return Step(name, ("-c", code), seconds, is_benchmark)


def test_every_step_is_reported_and_none_stops_the_others(tmp_path: Path) -> None:
    steps = [
        python("good", "print('a table'); print('{\"rows\": [1]}')"),
        python("bad", "import sys; print('why'); sys.exit(3)"),
        python("slow", "import time; print('begun', flush=True); time.sleep(60)", seconds=2),
        python("tests", "print('5 passed')", is_benchmark=False),
    ]
    out = tmp_path / "deep" / "gpu.json"
    assert gpu_report.collect(steps, out, None, "some GPU") == 1
    found = json.loads(out.read_text())["steps"]
    assert found["good"]["report"] == {"rows": [1]}
    assert (found["bad"]["code"], found["bad"]["output"]) == (3, "why\n")
    assert (found["slow"]["code"], found["slow"]["output"]) == (None, "begun\n")
    assert (found["tests"]["code"], found["tests"]["output"]) == (0, "5 passed\n")
    assert gpu_report.collect(steps, out, ["good", "tests"], "some GPU") == 0
    with pytest.raises(SystemExit, match="no step 'best'"):
        gpu_report.collect(steps, out, ["best"], "some GPU")


def test_the_standard_steps_name_scripts_and_options_that_exist(tmp_path: Path) -> None:
    steps = gpu_report.steps(tmp_path / "h100")
    assert sum(step.seconds for step in steps) <= 15 * 60
    for step in steps:
        if step.is_benchmark:
            known = subprocess.run(
                [sys.executable, str(REPO / step.command[0]), "--help"], capture_output=True, text=True, check=True
            ).stdout
            for word in step.command[1:]:
                assert not word.startswith("--") or word in known, (step.name, word)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_told() -> None:
    done = subprocess.run(
        [sys.executable, str(REPO / "benchmarks/gpu_report.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "make gpu needs a GPU" in done.stderr
