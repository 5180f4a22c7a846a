"""bench_first_result on a repository whose `make demo` installs nothing: its steps are run in a clone, and checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import bench_first_result
import pytest
from assets import REPO

MAKEFILE = """demo:
\ttest -z "$$PYTHONPATH$$VIRTUAL_ENV"
\tmkdir -p .venv/bin
\tprintf '#!/bin/sh\\nPYTHONPATH={repo} exec {python} {program} "$$@"\\n' > .venv/bin/baize
\tchmod +x .venv/bin/baize
"""


def source(folder: Path, program: str = "-m baize_engine") -> Path:
    """A repository with the demo pair and a Makefile that installs a `baize`: python with the arguments `program`."""
    (folder / "baize_engine").mkdir(parents=True)
    (folder / "baize_engine" / "demo_pair").symlink_to(REPO / "baize_engine" / "demo_pair")
    (folder / "Makefile").write_text(MAKEFILE.format(repo=REPO, python=sys.executable, program=program))
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    return folder


def test_every_step_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_first_result.py", "--source", str(source(tmp_path / "source"))])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))  # which the Makefile must not get
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "other"))
    clock = (float(n**2) for n in range(100))  # read at the beginning, then before and after each step
    monkeypatch.setattr(bench_first_result, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert bench_first_result.main() == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["step"] for row in rows] == ["clone", "make demo", "recover", "verify", "own answer"]
    assert [(row["s"], row["since_clone_s"]) for row in rows] == [(3, 4), (7, 16), (11, 36), (15, 64), (19, 100)]


def test_a_step_that_fails_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = source(tmp_path / "source", "-m no_such_module")
    monkeypatch.setattr(sys, "argv", ["bench_first_result.py", "--source", str(broken)])
    with pytest.raises(SystemExit, match="recover ended with 1"):
        bench_first_result.main()


def test_a_wrong_answer_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "wrong.py"  # succeeds at whatever it is told to do
    wrong.write_text("print('The capital of Sweden is Stockholm.')\n")
    monkeypatch.setattr(
        sys, "argv", ["bench_first_result.py", "--source", str(source(tmp_path / "source", str(wrong)))]
    )
    with pytest.raises(SystemExit, match=r"the answer was 'The capital of Sweden .* wanted 'Oslo'"):
        bench_first_result.main()
