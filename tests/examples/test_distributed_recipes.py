"""The shell lines of docs/distributed.md: run with stand-ins for what they start, they call `baize` as they should.

`baize` notes how it was called and ends; what was noted is then run in this process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from assets import REPO
from commands import write

from baize_engine.cli import main

PAGE = (REPO / "docs" / "distributed.md").read_text()
STAND_INS = REPO / "tests" / "helpers" / "recipe_stand_ins.py"
LINES = [{"prompt": f"the cat sat on {i}"} for i in range(11)]


def recipe(name: str) -> str:
    """The block of the page below "<!-- recipe: name -->"."""
    (found,) = re.findall(rf"^<!-- recipe: {name} -->\n```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return found


@pytest.fixture
def place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model and prompts of the recipes, and the stand-ins in front of PATH."""
    (tmp_path / "baize-13b").symlink_to(folder)
    write(tmp_path / "prompts.jsonl", LINES)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("baize", "sbatch", "srun", "parallel", "ssh"):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{STAND_INS}" {name} "$@"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(script: str) -> list[dict]:
    """Runs shell lines, and returns how `baize` was called: [{"arguments": …, "gpu": …}, …], in order."""
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=True, timeout=300, capture_output=True)
    return [json.loads(line) for line in Path("called").read_text().splitlines()]


def merged(calls: list[dict]) -> None:
    """Runs what was called, and compares the result with that of one run."""
    assert [call["arguments"][0] for call in calls] == ["generate"] * 8 + ["merge"]
    for call in calls:
        assert main([*call["arguments"], *(["--device", "cpu"] if call["arguments"][0] == "generate" else [])]) == 0
    flags = ("--device", "cpu", "--temperature", "0.7", "--seed", "1")
    assert main(["generate", "baize-13b", "--input", "prompts.jsonl", "--output", "whole.jsonl", *flags]) == 0
    assert Path("out/all.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_a_slurm_array(place: Path) -> None:
    (place / "answer.sbatch").write_text(recipe("slurm"))
    merged(called(recipe("submit")))


@pytest.mark.usefixtures("place")
def test_parallel_on_the_gpus_of_a_host() -> None:
    calls = called(recipe("parallel"))
    assert sorted(call["gpu"] for call in calls[:-1]) == list("01234567")
    merged(calls)


def test_parallel_over_hosts(place: Path) -> None:
    (place / "hosts.txt").write_text("one\ntwo\n")
    calls = called(recipe("ssh"))
    assert {call["host"] for call in calls[:-1]} == {"one", "two"}
    merged(calls)
