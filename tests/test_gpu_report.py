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
        python("slow", "import time; print('begun', flush=True); time.sleep(60)", seconds=2),
        python("good", "print('a table'); print('{\"rows\": [1]}')"),
        python("bad", "import sys; print('why'); print('where', file=sys.stderr); sys.exit(3)"),
        python("tests", "print('5 passed')", is_benchmark=False),
    ]
    out = tmp_path / "deep" / "gpu.json"
    assert gpu_report.collect(steps, out, None, "some GPU", ["a note"]) == 1
    whole = json.loads(out.read_text())
    found = whole["steps"]
    assert found["good"]["report"] == {"rows": [1]}
    assert "problem" not in found["good"]
    assert (found["bad"]["code"], found["bad"]["output"]) == (3, "why\nwhere\n")
    assert (found["slow"]["code"], found["slow"]["output"]) == (None, "begun\n")
    assert found["slow"]["problem"].startswith("out of time after 2 s")
    assert (found["tests"]["code"], found["tests"]["output"]) == (0, "5 passed\n")
    assert whole["notes"] == ["a note"]
    assert whole["seconds"] >= sum(step["seconds"] for step in found.values()) - 0.5
    assert gpu_report.collect(steps, out, ["good", "tests"], "some GPU", []) == 0
    with pytest.raises(SystemExit, match="no step 'best'"):
        gpu_report.collect(steps, out, ["best"], "some GPU", [])


def test_a_late_warning_does_not_hide_the_report(tmp_path: Path) -> None:
    late = "import sys; print('{\"rows\": [1]}'); print('{late'); print('leaked semaphores', file=sys.stderr)"
    steps = [
        python("warns", late),
        python("says nothing", "print('a table')"),
        python("halves", "print('{\"rows\": [')"),
    ]
    out = tmp_path / "gpu.json"
    assert gpu_report.collect(steps[:1], out, None, "some GPU", []) == 0
    assert gpu_report.collect(steps, out, None, "some GPU", []) == 1
    found = json.loads(out.read_text())["steps"]
    assert found["warns"]["report"] == {"rows": [1]}
    for name, output in (("says nothing", "a table\n"), ("halves", '{"rows": [\n')):
        assert (found[name]["code"], found[name]["output"]) == (0, output)
        assert found[name]["problem"] == "no JSON object among the lines of its output"


def test_too_many_seconds_are_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    steps = [python("tests", "import time; time.sleep(1.1)", is_benchmark=False)]
    out = tmp_path / "gpu.json"
    assert gpu_report.collect(steps, out, None, "some GPU", [], budget=1) == 1
    assert json.loads(out.read_text())["seconds"] > 1
    assert "FAILED all together took 1 s, wanted 1 at most" in capsys.readouterr().out
    assert gpu_report.collect(steps, out, None, "some GPU", []) == 0


def test_a_step_may_take_what_those_before_it_left_over(tmp_path: Path) -> None:
    steps = [
        python("quick", "pass", seconds=20, is_benchmark=False),
        python("long", "import time; time.sleep(1.5)", seconds=1, is_benchmark=False),
    ]
    assert gpu_report.collect(steps, tmp_path / "gpu.json", None, "some GPU", []) == 0
    assert gpu_report.collect(steps, tmp_path / "gpu.json", ["long"], "some GPU", []) == 1


def test_what_a_step_that_ran_out_of_time_had_started_is_ended(tmp_path: Path) -> None:
    """A compiler, say: it would hold the machine, and the pipe that this process reads."""
    code = (
        "import subprocess, sys, time;"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    )
    found = gpu_report.run(python("starts another", code), 1.5)
    assert found["code"] is None
    assert found["seconds"] < 30


def test_a_step_sees_this_repository_before_what_the_user_has_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere else")
    found = gpu_report.run(python("path", "import os; print(os.environ['PYTHONPATH'])", is_benchmark=False), 60)
    assert found["output"] == f"{REPO}:/somewhere else\n"


def test_the_standard_steps_name_scripts_and_options_that_exist(tmp_path: Path) -> None:
    out = tmp_path / "some folder" / "h100"
    steps = gpu_report.steps(out)
    assert gpu_report.BUDGET == 8 * 60
    assert sum(step.seconds for step in steps) <= gpu_report.BUDGET
    assert steps[0].command == ("setup.py", "--quiet", "build_ext", "--inplace")
    for step in steps:
        if step.is_benchmark:
            known = subprocess.run(
                [sys.executable, str(REPO / step.command[0]), "--help"], capture_output=True, text=True, check=True
            ).stdout
            for word in step.command[1:]:
                assert not word.startswith("--") or word in known, (step.name, word)
        else:
            assert all((REPO / word).exists() for word in step.command if word.startswith("tests"))
    assert f"{out}.trace.json" in steps[-1].command
    tested = {word for step in steps for word in step.command}
    assert {f"tests/{path.name}" for path in (REPO / "tests").glob("test_*_cpp.py")} <= tested


@pytest.mark.parametrize("installed", [True, False])
def test_a_machine_without_matplotlib_is_told_how_to_draw(
    tmp_path: Path, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_report, "has", lambda package: installed)
    out = tmp_path / "h100"
    command = gpu_report.steps(out)[-1].command
    assert command[command.index("--json") + 1] == f"{out}.profile.json"
    assert ("--picture" in command) == installed
    assert bool(gpu_report.notes(out)) != installed
    for note in gpu_report.notes(out):
        assert f"profile_step.py --from_json {out}.profile.json --picture {out}.png" in note


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_told() -> None:
    done = subprocess.run(
        [sys.executable, str(REPO / "benchmarks/gpu_report.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "make gpu needs a GPU" in done.stderr
