"""The plan of `make gpu`: what it names exists, fits into the calls of a lent GPU, and runs in small on the CPU."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import gpu_plan
import gpu_report
import pytest
from assets import REPO
from gpu_plan import GROUPS, chosen, listing, options_of, steps


def plan(folder: Path = Path("some folder")) -> list[gpu_plan.Step]:
    return steps(gpu_report.in_folder(folder))


def test_evidence_comes_first() -> None:
    wanted = [
        "build", "decode13b", "profile", "predicted", "kernels", "tests", "int8", "int4", "dram", "tune", "tuned13b",
        "prefill", "diff_add", "decode7b", "long", "throughput", "recover", "csrc", "speculate",
    ]  # fmt: skip
    assert [step.name for step in plan()] == wanted
    assert all(name.isalnum() or name == "diff_add" for name in wanted)  # words of STEPS


def test_groups_are_calls_of_a_lent_machine() -> None:
    """Each has its own build, is short enough, and writes what its steps need."""
    assert gpu_plan.CALL <= 600 - 30  # what starting, and ending steps that are out of time, takes
    for group in GROUPS:
        mine = chosen(plan(), [group])
        assert mine[0].name == "build"
        assert sum(step.seconds for step in mine) <= gpu_plan.CALL
        written: set[str] = set()
        for step in mine:
            assert {str(path) for path in step.needs} <= written, step.name
            written |= set(step.command)
    assert {step.name for step in plan() if not step.groups} == set()


def test_all_files_of_a_call_come_back() -> None:
    """A lent machine returns eight, named in letters, digits and '._-'."""
    for group in GROUPS:
        words = {word for step in chosen(plan(Path("/out")), [group]) for word in step.command}
        files = {word.removeprefix("/out/") for word in words if word.startswith("/out/")} | {"gpu.json", "gpu.log"}
        assert gpu_plan.RUNNING in files
        assert len(files) <= 8
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in files)


def test_steps_are_chosen_by_name_and_group() -> None:
    names = [step.name for step in chosen(plan(), ["profile", "decode13b"])]
    assert names == ["decode13b", "profile"]  # in the order of the plan
    assert [step.name for step in chosen(plan(), ["second", "int8"])] == ["build", "int8", "tune", "tuned13b"]
    assert len(chosen(plan(), [])) == len(plan())
    with pytest.raises(ValueError, match=r"no step 'decode14b', wanted some of build, decode13b, .* or a group: first"):
        chosen(plan(), ["decode14b"])


def test_the_list_tells_when_a_step_begins() -> None:
    first = chosen(plan(), ["first"])
    head, *lines = listing("first", first)
    assert head == f"first: {sum(step.seconds for step in first)} s at most"
    assert lines[1].split()[:5] == [str(first[0].seconds), "s", str(first[1].seconds), "s", "decode13b"]
    assert lines[-1].split()[0] == str(sum(step.seconds for step in first[:-1]))
    assert len(lines) == len(first)


def test_the_rehearsed_options_are_those_of_the_day() -> None:
    """An option that a script does not have fails in the rehearsal already; values alone are smaller."""
    for step in plan():
        if step.is_benchmark:
            assert step.rehearsal[0] == step.command[0]
            real, small = options_of(step.command[1:]), options_of(step.rehearsal[1:])
            assert real.keys() <= small.keys(), step.name
            assert list(real) == [word for word in step.command if word.startswith("--")], (step.name, "twice")
        elif step.name != "build":
            assert {word for word in step.command if not word.isdigit()} <= {*step.rehearsal}, step.name


def test_no_file_with_gpu_tests_is_missing() -> None:
    """Those that pytest would choose by `-m gpu`, read from the sources."""

    def marks(tree: ast.AST) -> set[str]:
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "gpu"]
        return {ast.unparse(node.value) for node in names}

    files = (REPO / "tests").rglob("test_*.py")
    marked = {str(path.relative_to(REPO)) for path in files if "pytest.mark" in marks(ast.parse(path.read_text()))}
    (step,) = chosen(plan(), ["tests"])
    assert {word for word in step.command if word.startswith("tests/")} == marked
    assert "tests/end_to_end/test_gpu.py" in marked
    assert step.command[step.command.index("-m", 2) + 1] == "gpu"


def test_every_set_of_cpp_tests_is_named() -> None:
    (step,) = chosen(plan(), ["csrc"])
    files = {str(path.relative_to(REPO)) for path in (REPO / "tests" / "csrc").glob("test_*.py")}
    assert len(files) > 3
    assert files <= {*step.command}


@pytest.mark.parametrize("installed", [True, False])
def test_what_is_not_installed_is_left_out_and_told(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gpu_plan, gpu_report):
        monkeypatch.setattr(module, "has", lambda package: installed)
    place = gpu_report.in_repository("h100")
    by_name = {step.name: step for step in steps(place)}
    assert ("--picture" in by_name["profile"].command) == installed
    assert ("-n" in by_name["tests"].command) == installed
    assert bool(by_name["build"].rehearsal) == installed
    told = gpu_report.notes(place)
    assert bool(told) != installed
    if told:
        assert re.search(r"profile_step.py --from_json \S+/h100-profile.json --picture \S+/h100-profile.png", told[0])
        assert "pytest-xdist is not installed" in told[1]


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    "words",
    [
        ["decode13b"], ["profile", "predicted"], ["kernels"], ["tests"], ["tune", "tuned13b"],
        ["prefill", "throughput"],
        ["diff_add", "recover", "csrc", "speculate"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_rehearsal(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps as on the day, in small: their scripts import, take their options, and report. One step of each script."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")  # whose import takes a second
    command = [sys.executable, str(REPO / "benchmarks/gpu_report.py"), "--rehearse", "--out", str(tmp_path), "--steps"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert list(found) == words
    for step in chosen(plan(), words):
        told = found[step.name]
        assert told["report"]["rows"] if step.is_benchmark else told["output"]
        assert not [row for row in told.get("report", {}).get("rows", []) if "problem" in row]
    assert not (tmp_path / gpu_plan.RUNNING).exists()


@pytest.mark.usefixtures("forked")
def test_a_rehearsal_that_fails_says_so(tmp_path: Path) -> None:
    """Here of a step whose file no step before it has written."""
    command = [sys.executable, str(REPO / "benchmarks/gpu_report.py"), "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--steps", "predicted"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "FAILED predicted: it needs profile.json, which no step has written" in done.stdout


def test_every_script_and_option_is_rehearsed_here() -> None:
    """By the steps of `test_rehearsal`; the build needs pybind11, which a machine for tests may lack."""
    marks = [mark for mark in test_rehearsal.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    rehearsed = chosen(plan(), {word for mark in marks for words in mark.args[1] for word in words})
    for step in plan():
        if step.is_benchmark:
            same = [options_of(other.rehearsal[1:]) for other in rehearsed if other.command[0] == step.command[0]]
            assert any(options_of(step.command[1:]).keys() <= options.keys() for options in same), step.name
        else:
            assert step in rehearsed or step.name == "build"
