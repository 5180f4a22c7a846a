"""Every module has a file of tests by its name, in the folder that mirrors its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from assets import REPO

TESTS = REPO / "tests"
SHORT = 40  # lines of a module that may be tested with its callers alone


def modules() -> dict[str, Path]:
    """Every module as "folder/name", with its file."""
    package = REPO / "baize_engine"
    found = {str(path.relative_to(package).with_suffix("")): path for path in sorted(package.rglob("*.py"))}
    found = {name: path for name, path in found.items() if not name.startswith("kernels/")}
    found |= {f"kernels/{path.stem}": path for path in sorted((REPO / "kernels").glob("*.py"))}
    return {name: path for name, path in found.items() if not path.name.startswith("__")}


def test_every_module_has_its_file_of_tests() -> None:
    missing = []
    for name, path in modules().items():
        folder, _, stem = name.rpartition("/")
        if not (TESTS / folder / f"test_{stem}.py").exists() and len(path.read_text().splitlines()) > SHORT:
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_file_of_tests_imports_another(path: Path) -> None:
    """What they share is in tests/helpers/ or in conftest.py."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    assert [line for line in lines if line.startswith(("import test_", "from test_", "from tests"))] == []
