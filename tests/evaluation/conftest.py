"""Where programs that nobody has read are run in tests: in namespaces, or in folders as on a system that has none."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from code_runners import SMALL

from baize_engine.errors import BackendError
from baize_engine.evaluation.code_execution import CodeRunner

PYTHON = "/usr/bin/python3"  # for nobody, who cannot read an interpreter in a folder of root's


def try_out(runner: CodeRunner) -> None:
    """Skips where programs do not run, or not as the runner is to run them."""
    try:
        lines = runner.isolation()
    except BackendError as error:
        pytest.skip(str(error))
    if runner.namespaces != (lines[0] == "network: dropped"):
        pytest.skip("; ".join(lines))


@pytest.fixture(scope="module")
def namespaces() -> bool:
    try_out(SMALL)
    return True


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> bool:
    """False, as a runner's `namespaces` is to be."""
    if os.geteuid() == 0:
        monkeypatch.setattr(sys, "executable", PYTHON)
    try_out(replace(SMALL, namespaces=False))
    return False


@pytest.fixture
def nobody(folders: bool) -> bool:
    if os.geteuid() != 0:
        pytest.skip("without namespaces a program may do what its user may, and only root can make it another's")
    return folders


@pytest.fixture(params=["namespaces", "folders"])
def anywhere(request: pytest.FixtureRequest) -> bool:
    """Whether there are namespaces."""
    return bool(request.getfixturevalue(request.param))


@pytest.fixture(params=["namespaces", "nobody"])
def guarded(request: pytest.FixtureRequest) -> bool:
    """Whether there are namespaces; where there are none, programs are run by another user than this."""
    return bool(request.getfixturevalue(request.param))


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody may look into, as they may not into pytest's; for all temporary ones."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)
