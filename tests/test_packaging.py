"""What packaging says once, or in two places alike: the version, the packages, the files of a release."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from assets import REPO

import baize_engine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())


def metadata(key: str) -> Any:
    return PYPROJECT["tool"]["setuptools"][key]


def test_the_version_is_a_literal_that_is_read_without_an_import() -> None:
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert metadata("dynamic") == {"version": {"attr": "baize_engine.__version__"}}
    tree = ast.parse((REPO / "baize_engine" / "__init__.py").read_text())
    values = [node.value for node in tree.body if isinstance(node, ast.Assign) and named(node) == "__version__"]
    assert [ast.literal_eval(value) for value in values] == [baize_engine.__version__]


def named(node: ast.Assign) -> str:
    return node.targets[0].id if isinstance(node.targets[0], ast.Name) else ""


def test_the_newest_heading_of_the_changelog_is_the_version() -> None:
    headings = re.findall(r"^## (.*)$", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    versions = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (?:not released yet|\d{4}-\d\d-\d\d)", each) for each in headings]
    assert None not in versions, headings
    assert versions[0][1] == baize_engine.__version__


def test_groups_of_the_changelog_are_those_of_its_form() -> None:
    groups = re.findall(r"^### (.*)$", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(groups) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_every_folder_of_modules_is_a_package_of_the_wheel() -> None:
    package = REPO / "baize_engine"
    found = {path.parent for path in package.rglob("*.py") if "demo_pair" not in path.parts}
    names = {".".join(path.relative_to(REPO).parts) for path in found} | {"baize_engine.kernels"}
    assert sorted(names) == metadata("packages")


@pytest.mark.parametrize("script", sorted(path.name for path in (REPO / ".ci").iterdir() if path.suffix == ""))
def test_scripts_of_ci_are_valid_and_can_be_started(script: str) -> None:
    path = REPO / ".ci" / script
    assert path.stat().st_mode & 0o100
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_tests_that_ci_runs_on_the_wheel_exist() -> None:
    """A test that moved would end .ci/wheel only after its minutes of building."""
    text = (REPO / ".ci" / "wheel").read_text()
    groups = re.findall(r'"\$here"/tests/\{([\w/,]+)\}\.py', text)
    files = [f"{name}.py" for group in groups for name in group.split(",")]
    folders = re.findall(r'"\$here"/tests/([\w/]+)\n', text)
    assert len(files) > 5
    assert folders
    assert [name for name in [*files, *folders] if not Path(REPO, "tests", name).exists()] == []
