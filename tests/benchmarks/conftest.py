"""Fixtures that tests of several scripts share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from make_pair import make_pair
from preloaded import Forked, WithTransformers
from step_clock import StepClock


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python processes that a test starts, and those that these start, are forked from one that has imported torch."""
    monkeypatch.setattr(subprocess, "Popen", Forked)


@pytest.fixture
def forked_with_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of one that has imported transformers too."""
    monkeypatch.setattr(subprocess, "Popen", WithTransformers)


@pytest.fixture
def step_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[StepClock]:
    """What steps tell the seconds that they spend."""
    clock = StepClock(monkeypatch)
    yield clock
    clock.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base and the diff of make_pair.py's tiny preset."""
    out = tmp_path_factory.mktemp("pair")
    make_pair("tiny", out)
    return out


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], None]:
    """Makes a script's form for GPUs hear that this machine is one."""

    def hears(script: ModuleType) -> None:
        monkeypatch.setattr("gpu.ceilings", lambda device: {"copy_GB/s": 10.0})
        monkeypatch.setattr(script, "device_name", lambda device: "NVIDIA H100 80GB HBM3")

    return hears
