"""`make gpu` without a GPU: one file of all steps, whatever becomes of each, and what is said of machines that cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gpu_report
import gpu_run
import pytest
import torch
from assets import REPO
from gpu_plan import Step
from gpu_report import collect, in_folder, in_repository
from step_clock import SPEND, StepClock

SCRIPT = [sys.executable, str(REPO / "benchmarks/gpu_report.py")]


def python(name: str, code: str, seconds: int = 60, is_benchmark: bool = True) -> Step:
    return Step(name, ("-c", code), seconds, is_benchmark)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, step_clock: StepClock) -> StepClock:
    """The time of `collect`."""
    step_clock.rule(monkeypatch, gpu_report, gpu_run)
    return step_clock


@pytest.mark.usefixtures("clock")
def test_every_step_is_reported_and_none_stops_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    steps = [
        python("slow", f"print('begun', flush=True); {SPEND}spend(60)", seconds=2),
        python("good", "print('a table'); print('{\"rows\": [1]}')"),
        python("bad", "import sys; print('why'); print('where', file=sys.stderr); sys.exit(3)"),
        python("tests", "print('5 passed')", is_benchmark=False),
        python("says nothing", "print('a table')"),
    ]
    place = in_folder(tmp_path / "deep")
    assert collect(steps, place, "some GPU", ["a note"]) == 1
    whole = json.loads(place("gpu.json").read_text())
    found = whole["steps"]
    assert found["good"]["report"] == {"rows": [1]}
    assert "problem" not in found["good"]
    assert (found["bad"]["code"], found["bad"]["output"]) == (3, "why\nwhere\n")
    assert (found["slow"]["code"], found["slow"]["output"].split()[0]) == (None, "begun")
    assert found["slow"]["problem"].startswith("out of time after 2 s")
    assert (found["tests"]["code"], found["tests"]["output"]) == (0, "5 passed\n")
    assert found["says nothing"]["problem"] == "no JSON object among the lines of its output"
    assert whole["notes"] == ["a note"]
    assert whole["seconds"] >= sum(step["seconds"] for step in found.values()) - 0.5
    assert {path.name for path in place("").iterdir()} == {"gpu.json", "gpu.log"}
    log = place("gpu.log").read_text()
    assert all(said in log for said in ("== slow: -c print('begun'", "begun", "a table", "why", "5 passed"))
    assert "FAILED bad: exit code 3" in capsys.readouterr().out


def test_the_whole_is_there_after_each_step(tmp_path: Path) -> None:
    """What the machine leaves when it is taken away while a later step runs."""
    place = in_folder(tmp_path)
    look = f"import shutil; shutil.copy({str(place('gpu.json'))!r}, {str(place('seen.json'))!r}); print('{{}}')"
    assert collect([python("one", "print('{\"rows\": [1]}')"), python("two", look)], place, "some GPU") == 0
    assert json.loads(place("seen.json").read_text())["steps"]["one"]["report"] == {"rows": [1]}


def test_a_later_call_keeps_the_steps_of_an_earlier_one(tmp_path: Path) -> None:
    """On the same device and commit: `make gpu STEPS=second` after `STEPS=first`."""
    place = in_folder(tmp_path)
    collect([python("one", "print('{\"rows\": [1]}')"), python("two", "exit(1)")], place, "some GPU")
    assert collect([python("two", "print('{\"rows\": [2]}')")], place, "some GPU") == 0
    found = json.loads(place("gpu.json").read_text())["steps"]
    assert {name: step["report"]["rows"] for name, step in found.items()} == {"one": [1], "two": [2]}
    collect([python("two", "print('{}')")], place, "another GPU")
    assert json.loads(place("gpu.json").read_text())["steps"].keys() == {"two"}


@pytest.mark.usefixtures("clock")
def test_too_many_seconds_are_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    steps = [python("tests", f"{SPEND}spend(1.1)", is_benchmark=False)]
    assert collect(steps, in_folder(tmp_path), "some GPU", budget=1) == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["seconds"] > 1
    assert "FAILED all together took 1 s, wanted 1 at most" in capsys.readouterr().out
    assert collect(steps, in_folder(tmp_path), "some GPU") == 0


@pytest.mark.usefixtures("clock")
def test_a_step_may_take_what_those_before_it_left_over(tmp_path: Path) -> None:
    steps = [
        python("quick", "pass", seconds=20, is_benchmark=False),
        python("long", f"{SPEND}spend(1.5)", seconds=1, is_benchmark=False),
    ]
    assert collect(steps, in_folder(tmp_path), "some GPU") == 0
    assert collect(steps[1:], in_folder(tmp_path), "some GPU") == 1


@pytest.mark.usefixtures("clock")
def test_a_step_that_was_too_long_takes_nothing_from_the_next(tmp_path: Path) -> None:
    late = python("deaf", f"{SPEND}spend(60, deaf=True)", seconds=1)
    steps = [late, python("next", f"{SPEND}spend(1.5); print('{{}}')", seconds=3)]
    assert collect(steps, in_folder(tmp_path), "some GPU") == 1
    found = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert [name for name, step in found.items() if "problem" in step] == ["deaf"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_is_ended_writes_what_it_has(number: int, tmp_path: Path, step_clock: StepClock) -> None:
    """By Ctrl-C, or by a machine that ends commands; started as a shell starts what runs in the background."""
    small = [f"Step({name!r}, (), 60, True, (), ('-c', {code!r}))" for name, code in (
        ("one", "print('{\"rows\": [1]}')"), ("slow", f"{SPEND}spend(60)"), ("last", ""),
    )]  # fmt: skip
    code = (
        "import signal, sys; sys.path.insert(0, 'benchmarks'); import gpu_report; from gpu_plan import Step\n"
        f"gpu_report.steps = lambda place: [{', '.join(small)}]\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "sys.argv[1:] = ['--rehearse', '--out', sys.argv[1]]; sys.exit(gpu_report.main())"
    )
    command = [sys.executable, "-c", code, tmp_path]
    with (
        subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as child,
        step_clock.spending(child),
    ):
        os.kill(child.pid, number)
        said, _ = child.communicate(timeout=300)
    assert child.returncode == 130
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert list(steps) == ["one", "slow"]
    assert (steps["one"]["report"], steps["slow"]["problem"]) == ({"rows": [1]}, "interrupted")
    assert "KeyboardInterrupt" in steps["slow"]["output"]  # SIGINT was not ignored in the step
    assert "FAILED slow: interrupted" in said


def test_files_lie_in_one_folder_or_where_they_belong(tmp_path: Path) -> None:
    assert in_folder(tmp_path)("tuned.json") == tmp_path / "tuned.json"
    assert in_repository("h100")("profile.json") == REPO / "benchmarks/results/h100-profile.json"
    assert in_repository("h100")("tuned.json") == REPO / "kernels/tuned/h100.json"
    told = [said for said in gpu_report.notes(in_folder(tmp_path)) if "tuned.json" in said]
    assert "once it lies in kernels/tuned/ as <gpu>.json" in told[0]
    assert not [said for said in gpu_report.notes(in_repository("h100")) if "tuned.json" in said]


def test_make_passes_the_folder_and_the_steps() -> None:
    def made(*words: str) -> str:
        done = subprocess.run(["make", "-n", *words], cwd=REPO, capture_output=True, text=True, check=True)
        return done.stdout

    assert '--out "/a folder" --steps decode13b profile' in made("gpu", "OUT=/a folder", "STEPS=decode13b profile")
    assert "--out" not in made("gpu", "OUT=") + made("gpu", "OUT=", "STEPS=")
    assert '--out "x" --steps build tune' in made("gpu-tune", "OUT=x")


def test_the_list_needs_no_gpu() -> None:
    done = subprocess.run([*SCRIPT, "--list", "--steps", "first"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("first: ")
    assert "bench_decode.py" in done.stdout
    done = subprocess.run([*SCRIPT, "--list", "--steps", "fist"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--steps: no step 'fist', wanted some of build" in done.stderr


@pytest.mark.usefixtures("forked")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_told() -> None:
    done = subprocess.run(SCRIPT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "make gpu needs a GPU" in done.stderr


def test_a_machine_with_a_gpu_runs_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way there, with a GPU that is made up: files beside each other by its name, or in the folder that is given."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_report, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(gpu_report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu_report, "steps", lambda place: [python("one", f'print(\'{{"at": "{place("x")}"}}\')')])
    for words, name in (([], "results/nvidia-h100-80gb-hbm3-"), (["--out", str(tmp_path / "out")], "out/")):
        monkeypatch.setattr(sys, "argv", ["gpu_report.py", *words])
        assert gpu_report.main() == 0
        whole = json.loads((tmp_path / f"{name}gpu.json").read_text())
        assert whole["device"] == "NVIDIA H100 80GB HBM3"
        assert whole["steps"]["one"]["report"] == {"at": str(tmp_path / f"{name}x")}


def test_a_table_of_an_earlier_call_is_not_the_tuners(tmp_path: Path) -> None:
    """The tuner fails, and what would be measured with its table has an old one at hand."""
    table = tmp_path / "tuned.json"
    table.write_text("{}")
    os.utime(table, (1, 1))
    some = [
        python("tune", f"import sys; sys.exit({str(table)!r} == '')", is_benchmark=False),
        replace(python("tuned13b", "print('{}')"), needs=(table,)),
    ]
    some[0] = replace(some[0], command=(*some[0].command, str(table)))
    place = gpu_report.in_folder(tmp_path)
    assert gpu_report.collect(some, place, "a GPU") == 1
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert steps["tuned13b"]["problem"] == "it needs tuned.json, and what is there is of an earlier call"
    assert gpu_report.collect(some[1:], place, "a GPU") == 0  # asked for by itself, it takes what is there


def test_without_the_extension_nothing_runs(tmp_path: Path) -> None:
    some = [python("build", "import sys; sys.exit(1)", is_benchmark=False), python("decode13b", "print('{}')")]
    assert gpu_report.collect(some, gpu_report.in_folder(tmp_path), "a GPU") == 1
    assert list(json.loads((tmp_path / "gpu.json").read_text())["steps"]) == ["build"]


def test_steps_of_a_tree_that_does_not_say_its_commit_do_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_report, "commit", lambda: "unknown")
    place, some = gpu_report.in_folder(tmp_path), [python("one", "print('{}')"), python("two", "print('{}')")]

    def steps(step: Step, known: str | None) -> tuple[str, list[str]]:
        gpu_report.collect([step], place, "a GPU", known=known)
        whole = json.loads((tmp_path / "gpu.json").read_text())
        return whole["commit"], list(whole["steps"])

    assert steps(some[0], None) == ("unknown", ["one"])
    assert steps(some[1], None) == ("unknown", ["two"])
    assert steps(some[0], "abc") == ("abc", ["one"])
    assert steps(some[1], "abc") == ("abc", ["one", "two"])


@pytest.mark.parametrize("there", [True, False])
def test_a_bare_machine_builds_first(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def collect(some: list[Step], *rest: object, **options: object) -> int:
        ran.extend(step.name for step in some)
        return 0

    monkeypatch.setattr(gpu_report, "collect", collect)
    monkeypatch.setattr(gpu_report, "built", lambda: there)
    monkeypatch.setattr(gpu_report, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", "--out", str(tmp_path), "--steps", "decode13b", "profile"])
    assert gpu_report.main() == 0
    assert ran == ([] if there else ["build"]) + ["decode13b", "profile"]
