"""The workspace of the pages' examples: a model before and after its recovery, a file of prompts, `baize` and `python`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from assets import REPO
from commands import write

import baize_engine
from baize_engine import recover
from baize_engine.cli.demo import PAIR

QUESTIONS = ("What is the capital of France?", "What is the opposite of hot?", "What colour is the sky?")
SCRIPTS = ("benchmarks", "examples")  # folders of a checkout that commands name


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that a workspace may hold; nothing is run in it."""
    place = tmp_path_factory.mktemp("originals")
    shutil.copytree(PAIR / "base", place / "llama-13b")
    shutil.copytree(PAIR / "diff", place / "open-instruct-baize-13b-diff")
    recover(PAIR / "base", PAIR / "diff", place / "baize-13b", device="cpu", progress=False)
    write(place / "prompts.jsonl", [{"id": i, "prompt": question} for i, question in enumerate(QUESTIONS)])
    return place


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose `baize` and `python` are this interpreter, with the package that is being tested, offline."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in (("baize", "-m baize_engine "), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        (folder / name).chmod(0o755)
    path = [str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]
    packages = [str(Path(baize_engine.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    found = {"PATH": os.pathsep.join(path), "PYTHONPATH": os.pathsep.join(filter(None, packages))}
    return {**os.environ, **found, "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def workspace(originals: Path, tmp_path: Path) -> Callable[[tuple[str, ...]], Path]:
    """Makes a new folder with copies of all but the names given, and with the scripts of a checkout."""

    def made(without: tuple[str, ...]) -> Path:
        place = tmp_path / "workspace"
        shutil.copytree(originals, place, ignore=lambda _, names: set(without) & set(names))
        for name in SCRIPTS:
            (place / name).symlink_to(REPO / name)
        return place

    return made
