"""What runs on a change: the workflows, the hooks, the linters, and the rule on the length of files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from assets import REPO

WORKFLOWS = sorted((REPO / ".github/workflows").glob("*.yml"))  # none in an sdist
FORMS = sorted((REPO / ".github/ISSUE_TEMPLATE").glob("*.yml"))
HOOKS = REPO / ".pre-commit-config.yaml"
DEFAULT_LABELS = {"bug", "documentation", "enhancement", "question"}  # those of every new repository that fit a form
MOST_LINES = 300
LONGER = {
    "baize_engine/engine.py": "the public class: two fifths are docstrings, of which the API's pages are made",
    "baize_engine/backend/choose.py": "the table of implementations, and all reasons why one cannot run",
    "baize_engine/backend/cpp_ops.py": "the operands of every op, checked alike",
    "baize_engine/evaluation/code_places.py": "both kinds of sandbox, and the system calls that they share",
    "baize_engine/generation/loop.py": "one class, whose methods share all their state",
    "baize_engine/generation/scheduler.py": "one class, whose methods share all their state",
    "baize_engine/model/prompt_runner.py": "one class, whose methods share all their state",
    "baize_engine/team.py": "what rank 0 and the other ranks do, side by side",
    "benchmarks/bench_eval.py": "one benchmark",
    "benchmarks/bench_throughput.py": "one benchmark",
    "benchmarks/engines.py": "every engine in one script, which is started alone",
    "benchmarks/kernel_cases.py": "the cases of every op",
    "kernels/product.py": "one kernel with its epilogues",
    "kernels/quantized.py": "both quantised formats, with their quantisers",
    "kernels/reference.py": "what every kernel computes, in one place",
    "kernels/sample.py": "the sampler and the kernels that prepare the next step, which share its helpers",
}


def load(path: Path) -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: it comes with transformers and mkdocs")
    return yaml.safe_load(path.read_text())


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.skipif(not WORKFLOWS, reason="an sdist has no workflows")
def test_ci_runs_what_everybody_runs() -> None:
    workflow = load(REPO / ".github/workflows/ci.yml")
    assert "bash .ci/run" in [step.get("run") for step in steps(workflow)]
    triggers = workflow[True]  # YAML 1.1 reads the key `on` so
    assert triggers["push"] == {"branches": ["main"]}
    assert "pull_request" in triggers
    assert workflow["concurrency"]["cancel-in-progress"] == "${{ github.event_name == 'pull_request' }}"


@pytest.mark.skipif(not WORKFLOWS, reason="an sdist has no workflows")
def test_python_versions_agree() -> None:
    """Those that CI runs, wheels are built for, and the package's page names; the oldest is the oldest that installs."""
    text = (REPO / "pyproject.toml").read_text()
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    (build,) = re.findall(r'^build = "(.*)"$', text, re.MULTILINE)
    assert [f"cp{version.replace('.', '')}-*" for version in named] == build.split()
    assert f'requires-python = ">={named[0]}"' in text
    assert f"CPython {named[0]} to {named[-1]} " in (REPO / "CONTRIBUTING.md").read_text()
    matrix = load(REPO / ".github/workflows/ci.yml")["jobs"]["run"]["strategy"]["matrix"]["python"]
    assert named[0] in matrix
    assert set(matrix) <= set(named)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_asks_for_few_rights_and_has_steps(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    for step in steps(workflow):
        assert ("run" in step) != ("uses" in step), step
        assert "@" in step.get("uses", "@"), step


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_for_issues_parse_and_use_labels_that_exist(path: Path) -> None:
    form = load(path)
    if path.name == "config.yml":
        assert "SECURITY.md" in form["contact_links"][0]["about"]
    else:
        assert {"name", "description", "body"} <= set(form)
        assert set(form["labels"]) <= DEFAULT_LABELS


def test_hooks_parse_and_use_the_tools_of_lint() -> None:
    hooks = {hook["id"]: hook for repo in load(HOOKS)["repos"] for hook in repo["hooks"]}
    assert all({"name", "language", "entry"} <= set(hook) for hook in hooks.values())
    local = {name: hook["entry"].split()[0] for name, hook in hooks.items() if hook["language"] == "system"}
    assert local.keys() == {"ruff", "ruff-format", "mypy", "clang-format"}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (REPO / "Makefile").read_text(), re.MULTILINE)
    assert lint is not None
    tools = {line.split()[0].replace("$(BIN)", ".venv/bin") for line in lint[1].splitlines()}
    assert set(local.values()) == tools


def test_lint_and_hook_see_every_file_of_csrc() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make")
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of the make that runs the tests
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    command = [make, "--dry-run", "lint"]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if "clang-format --dry-run -Werror " in line)
    files = sorted(str(path.relative_to(REPO)) for path in (REPO / "csrc").rglob("*") if path.is_file())
    assert len(files) > 50
    assert sorted(line.partition("-Werror ")[2].split()) == files
    pattern = re.search(r"id: clang-format\n(?: {8}.*\n)*? {8}files: (.*)\n", HOOKS.read_text())
    assert pattern is not None
    assert [file for file in files if not re.search(pattern[1], file)] == []


def test_one_version_of_clang_format() -> None:
    assert re.findall(r'"clang-format(.*?)"', (REPO / "pyproject.toml").read_text()) == ["==19.1.7"]
    assert "clang-format==" not in HOOKS.read_text()


def test_files_are_short_but_for_the_exceptions() -> None:
    found = set()
    for folder in ("baize_engine", "benchmarks", "csrc", "examples", "kernels"):
        for path in (REPO / folder).rglob("*"):
            name = path.relative_to(REPO).as_posix()
            if path.suffix in (".py", ".pyi", ".h", ".cpp") and not name.startswith("baize_engine/kernels/"):
                found |= {name} if len(path.read_text().splitlines()) > MOST_LINES else set()
    assert found == set(LONGER)
