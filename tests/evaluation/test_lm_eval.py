"""Starting the harness: what is added to its arguments, and what is said where it is not installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from baize_engine.errors import BaizeError
from baize_engine.evaluation.lm_eval import completed, run


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--tasks", "a"], ["run", "--model", "baize", "--device", "auto", "--tasks", "a"]),
        (["run", "-t", "a"], ["run", "--model", "baize", "--device", "auto", "-t", "a"]),
        (["--model", "hf", "--device=cpu"], ["run", "--model", "hf", "--device=cpu"]),
        (["-M", "hf", "--device", "cpu"], ["run", "-M", "hf", "--device", "cpu"]),
        (["--model=hf"], ["run", "--device", "auto", "--model=hf"]),
        (["--model_args", "device=cpu"], ["run", "--model", "baize", "--device", "auto", "--model_args", "device=cpu"]),
        (["ls", "tasks"], ["ls", "tasks"]),
        (["validate", "--tasks", "a"], ["validate", "--tasks", "a"]),
        ([], []),
    ],
)
def test_an_evaluation_is_of_our_model_unless_another_is_named(given: list[str], wanted: list[str]) -> None:
    assert completed(given) == wanted


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baize_engine.evaluation.lm_eval.find_spec", lambda _: None)
    with pytest.raises(BaizeError, match=r"pip install 'baize-engine\[eval\]'"):
        run(["--tasks", "a"])


def test_the_module_starts_the_harness_and_not_itself() -> None:
    """Its folder has the harness's name."""
    command = [sys.executable, "-m", "baize_engine.evaluation.lm_eval", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if find_spec("lm_eval") is None:
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "baize-engine[eval]" in done.stderr
    else:
        assert (done.returncode, "usage: lm-eval run" in done.stdout) == (0, True)
