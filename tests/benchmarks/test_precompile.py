"""Kernels compiled ahead, for a GPU that is not here, are those that launches then ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import chains
import precompile
import pytest
import tuner
from assets import REPO
from chain_runs import tiny
from tune_kernels import config_of
from tuner import Cell, Move

from baize_engine.kernels import reference, settings

ALONE = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
REAL = """
import sys
sys.path[:0] = sys.argv[1:3]
import chains, precompile, tune_kernels, tuner
from baize_engine.kernels import tuned
precompile.stand_in(90, True)
config = tune_kernels.config_of(tuner.Cell("tiny", "int4", 2))
ops, given = chains.kernels(), (config, "int4", 2, "cpu")
layers = chains.layers(ops, *given, (16, 64), 0)
late = tuner.Move((layers.ops[3],), "trigger", {"trigger": "late"}).on(tuner.rules(layers.ops))
rules = [(made, tuner.rules(made.ops)) for made in (layers, chains.head(ops, *given, 0), chains.sampler(ops, 1000, 2, "cpu"))]
for chain, plan in (*rules, (layers, late)):
    with tuned.using(tuner.table(chain.ops, plan)):
        for calls in chain.calls.values():
            for _, call in calls:
                call()
"""


@pytest.mark.usefixtures("forked")
def test_what_was_compiled_ahead_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls with tensors that have memory, at another number of rows and other contexts, compile nothing more."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    config, wanted = config_of(Cell("tiny", "int4", 1)), []
    for name in ("layers", "head", "sample"):
        chain = chains.of_ops(reference, config, "int4", 1, name)
        late = [Move((op,), "trigger", {"trigger": "late"}) for op in chain.ops if op.name == "gate_up"]
        wanted += precompile.jobs("tiny", "int4", chain.ops, late, tuner.rules(chain.ops), True)
    with precompile.Compilers(90, True, 1) as compilers:
        compilers.ask(wanted)
        assert [compilers.problem(job, 120) for job in wanted] == [None] * 8
        assert compilers.compiled == 8
    made = sorted(tmp_path.rglob("*.cubin"))
    assert len(made) == 9  # attention is two
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(REPO / "benchmarks"), str(REPO)], check=False, capture_output=True, text=True,
        env={**ALONE, "TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(tmp_path.rglob("*.cubin")) == made


@pytest.mark.usefixtures("forked")
def test_a_job_that_fails_says_why_and_the_next_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    chain = tiny(rows=1)
    good = precompile.Job.of("tiny", "float16", chain.ops[2], chain.ops[2].rule, True)
    unknown = replace(good, preset="no such", key=("unknown",))
    with precompile.Compilers(90, True, 1) as compilers:
        assert compilers.problem(unknown, 120) == "KeyError: 'no such'"
        assert compilers.problem(good, 120) is None


def test_a_process_that_ends_costs_its_job_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "ends.py"
    script.write_text(
        "import json, sys\nif 'late' in sys.stdin.readline(): sys.exit(3)\nprint('{\"problem\": null}')\n"
    )
    chain = tiny(rows=1)
    how = chain.ops[3].rule
    jobs = [
        precompile.Job.of("tiny", "float16", chain.ops[3], replace(how, trigger=one), True)
        for one in settings.TRIGGERS[1:]
    ]
    with precompile.Compilers(90, True, 1) as compilers:
        monkeypatch.setattr(compilers, "_command", [sys.executable, str(script)])
        assert compilers.problem(jobs[1], 60) == "the process that compiles ended with 3"
        assert compilers.problem(jobs[0], 60) is None


def test_time_is_not_spent_on_waiting_for_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import sys\nsys.stdin.read()\n")
    chain = tiny(rows=1)
    with precompile.Compilers(90, True, 1) as compilers:
        monkeypatch.setattr(compilers, "_command", [sys.executable, str(script)])
        with pytest.raises(TimeoutError):
            compilers.problem(precompile.Job.of("tiny", "float16", chain.ops[3], chain.ops[3].rule, True), 0.2)
