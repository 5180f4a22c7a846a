"""A step of `make gpu` as a process: what is kept of one that fails, runs out of time or is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gpu_run
import pytest
from assets import REPO
from gpu_plan import Step
from gpu_run import outcomes, parted, run
from processes import ends
from step_clock import SPEND, StepClock

XDIST_LINES = """
[gw0] [ 25%] PASSED tests/end_to_end/test_gpu.py::test_head[int4-64]
[gw1] [ 50%] FAILED tests/end_to_end/test_gpu.py::test_attention[batch 64-32]
[gw0] [ 75%] SKIPPED tests/end_to_end/test_gpu.py::test_two
[gw0] [ 75%] PASSED tests/end_to_end/test_gpu.py::test_three
[gw0] [100%] ERROR tests/end_to_end/test_gpu.py::test_three
FAILED tests/end_to_end/test_gpu.py::test_attention[batch 64-32] - AssertionError
"""
PLAIN_LINES = """
tests/end_to_end/test_gpu.py::test_head[int4-64] PASSED                 [ 25%]
tests/end_to_end/test_gpu.py::test_attention[batch 64-32] FAILED        [ 50%]
tests/end_to_end/test_gpu.py::test_two SKIPPED (no GPU)                 [ 75%]
tests/end_to_end/test_gpu.py::test_three PASSED                         [100%]
tests/end_to_end/test_gpu.py::test_three ERROR                          [100%]
FAILED tests/end_to_end/test_gpu.py::test_attention[batch 64-32] - AssertionError
"""


def python(code: str, *words: str, is_benchmark: bool = True) -> Step:
    return Step("a step", ("-c", code, *words), 60, is_benchmark)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, step_clock: StepClock) -> StepClock:
    """The time of `run`."""
    step_clock.rule(monkeypatch, gpu_run)
    return step_clock


def bench(tmp_path: Path, body: str) -> Step:
    """A benchmark in the form of them all, on whose `report` the lines of `body` work."""
    lines = [
        "import argparse, sys; from pathlib import Path; sys.path.insert(0, 'benchmarks')",
        "from reports import Report",
        "with Report('toy', argparse.Namespace(json=Path(sys.argv[2]))) as report:",
        *(f"    {line}" for line in body.splitlines()),
        "sys.exit(report.code)",
    ]
    return python("\n".join(lines), "--json", str(tmp_path / "running.json"))


@pytest.mark.usefixtures("clock")
def test_a_benchmark_that_is_out_of_time_keeps_its_rows(tmp_path: Path) -> None:
    found = run(bench(tmp_path, f"report.row({{'ms': 1}})\nwith report.case(kind='slow'):\n    {SPEND}spend(60)"), 3)
    assert (found["code"], found["problem"]) == (None, "out of time after 3 s")
    assert found["report"]["rows"] == [{"ms": 1}, {"kind": "slow", "problem": "interrupted"}]
    assert found["report"]["ended"] == "interrupted"


@pytest.mark.usefixtures("clock")
def test_one_that_does_not_listen_is_killed_and_keeps_its_rows(tmp_path: Path) -> None:
    found = run(bench(tmp_path, f"report.row({{'ms': 1}})\n{SPEND}spend(60, deaf=True)"), 3)
    assert found["problem"] == "out of time after 3 s"
    assert found["report"]["rows"] == [{"ms": 1}]
    assert found["seconds"] == 3 + gpu_run.GRACE


def test_a_case_that_failed_is_a_problem_beside_the_rows(tmp_path: Path) -> None:
    found = run(bench(tmp_path, "report.row({'ms': 1})\nwith report.case(kind='bad'):\n    sys.exit('off')"), 60)
    assert (found["code"], found["problem"]) == (1, "exit code 1")
    assert found["report"]["rows"] == [{"ms": 1}, {"kind": "bad", "problem": "off"}]


def test_rows_of_an_earlier_run_are_not_this_ones(tmp_path: Path) -> None:
    (tmp_path / "running.json").write_text('{"rows": [1]}')
    found = run(bench(tmp_path, "import no_such_module"), 60)
    assert found["report"]["rows"] == []
    (tmp_path / "running.json").write_text('{"rows": [1]}')
    assert "report" not in run(python("exit(2)", "--json", str(tmp_path / "running.json")), 60)


@pytest.mark.usefixtures("clock")
def test_what_a_step_that_ran_out_of_time_had_started_is_ended() -> None:
    """A compiler, say: it would hold the machine. Here one that does not listen to SIGINT."""
    other = "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    code = (
        "import subprocess, sys;"
        f"other = subprocess.Popen([sys.executable, '-c', {other!r}], stdout=subprocess.PIPE);"
        f"print(other.pid, other.stdout.readline(), flush=True); {SPEND}spend(60)"
    )
    found = run(python(code, is_benchmark=False), 2.5)
    pid, heard = found["output"].split()[:2]
    assert heard == r"b'deaf\n'"
    assert ends(int(pid))


# pytest, or xdist's first process, is busy from when it has told of two tests
TOLD_BEFORE_SLOW = f"""
import os, pytest
told = []

@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    told.append(report.when)
    if told.count("teardown") == 2 and "PYTEST_XDIST_WORKER" not in os.environ:
        {SPEND}spend(60)
"""


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("processes", [0, 2])
def test_tests_that_are_out_of_time_say_which_failed(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # hypothesis's takes a second
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # this test's own process may be one
    file = tmp_path / "tests" / "test_some.py"
    file.parent.mkdir()
    file.write_text(
        "import pytest, time\n"
        "def test_good(): pass\n"
        "@pytest.mark.parametrize('case', ['batch 64'])\n"
        "def test_bad(case): assert 1 + 1 == 3\n"
        "def test_slow(): time.sleep(600)\n"
    )
    (file.parent / "conftest.py").write_text(TOLD_BEFORE_SLOW)
    words = ("-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", "-c", os.devnull)
    side_by_side = ("-p", "xdist", "-n", str(processes)) if processes else ()
    found = run(Step("tests", (*words, *side_by_side, str(file)), 60, False), 8)
    assert found["problem"] == "out of time after 8 s"
    assert found["tests"]["passed"] == 1
    assert [name.rpartition("/")[2] for name in found["tests"]["failed"]] == ["test_some.py::test_bad[batch 64]"]
    assert "assert (1 + 1) == 3" in found["output"]  # pytest listened to SIGINT: the traceback is there


@pytest.mark.parametrize("lines", [XDIST_LINES, PLAIN_LINES])
def test_outcomes_of_tests(lines: str) -> None:
    failed = ["tests/end_to_end/test_gpu.py::test_attention[batch 64-32]", "tests/end_to_end/test_gpu.py::test_three"]
    assert outcomes(lines) == {"passed": 1, "skipped": 1, "failed": failed}
    assert outcomes("5 passed in 3 s\n") == {}


def test_the_report_is_found_among_late_lines() -> None:
    late = 'a table\n{"rows": [1]}leaked\n{late\nsemaphores\n'
    assert parted(late) == ("a table\nleaked\n{late\nsemaphores\n", {"rows": [1]})
    assert parted('a table\n{"rows": [\n') == ('a table\n{"rows": [\n', None)


def test_ctrl_c_is_a_problem_of_the_step(step_clock: StepClock) -> None:
    """Ctrl-C reaches the process that runs the step alone, which has a session of its own."""
    code = (
        "import json, sys; sys.path.insert(0, 'benchmarks'); from gpu_plan import Step; from gpu_run import run\n"
        f"print(json.dumps(run(Step('slow', ('-c', '{SPEND}spend(60)'), 60, False), 60)))"
    )
    with (
        subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdout=subprocess.PIPE, text=True) as child,
        step_clock.spending(child),
    ):
        os.kill(child.pid, signal.SIGINT)
        said, _ = child.communicate(timeout=300)
    found = json.loads(said.splitlines()[-1])
    assert (found["code"], found["problem"]) == (None, "interrupted")
    assert "KeyboardInterrupt" in found["output"]


def test_a_step_sees_this_repository_before_what_the_user_has_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere else")
    found = run(python("import os; print(os.environ['PYTHONPATH'])", is_benchmark=False), 60)
    assert found["output"] == f"{REPO}:/somewhere else\n"


def test_all_steps_share_what_was_compiled() -> None:
    shown = "import os; print(os.environ['TRITON_CACHE_DIR'])"
    found = {run(python(shown, is_benchmark=False), 60)["output"] for _ in range(2)}
    assert found == {f"{REPO}/build/triton\n"}


def test_a_step_whose_file_is_missing_is_not_run(tmp_path: Path) -> None:
    step = Step("second", ("-c", "print('ran')"), 60, False, needs=(tmp_path / "tuned.json",))
    assert run(step, 60) == {"code": None, "seconds": 0, "problem": "it needs tuned.json, which no step has written"}
    step.needs[0].touch()
    assert run(step, 60)["output"] == "ran\n"
