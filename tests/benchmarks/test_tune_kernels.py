"""The tuner over cells of a tiny model, and a rehearsal of the whole. No GPU."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chains
import precompile
import pytest
import torch
import tune_kernels
from assets import REPO
from chain_runs import Slow, fake_gpu, spoiled
from in_turn import OnGpu
from reports import INTERRUPTED, Report
from table_file import TableFile
from triton.runtime.errors import OutOfResources
from tune_kernels import REHEARSAL, OutOfTime, Tuning
from tuner import Cell

from baize_engine.kernels import launch, reference, tuned


def tuning(ops: Any, report: Report, path: Path, left: Callable[[], float] = lambda: 1e9, timer: Any = None) -> Tuning:
    return Tuning(
        ops, "cpu", timer or Slow(), True, precompile.Compilers(90, True, 0), report, TableFile(path, REHEARSAL), left
    )


def test_a_cell_is_measured_and_its_table_written(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    timer = Slow()
    with Report("tune_kernels", argparse.Namespace(json=None)) as report, torch.inference_mode():
        ours = tuning(reference, report, path, timer=timer)
        ours.cell(Cell("tiny", "float16", 1))
        first = timer.prepared
        ours.cell(Cell("tiny", "int4", 1))
    table = tuned.read(path)
    for bits in (16, 4):
        for key in (("gate_up", bits, (352, 64)), ("linear_add", bits, (64, 176)), ("head", bits, (1000, 64))):
            assert table.settings(*key, 1).trigger == "late", key
    assert table.settings("attention", 16, (4, 4, 16), 1) is None
    assert report.code == 0
    confirmed = [row for row in report.rows if row.get("aspect") == "confirmed"]
    assert all(row["us"] < row["before_us"] and row["kept"] for row in confirmed)
    assert len(confirmed) == 2 * (4 + 1 + 1 + 1)  # each product, all of the layers' together, and the head twice
    assert timer.prepared - first < first  # attention and the sampler do not depend on the weights: not a second time
    assert any("attention" in line for line in report.facts["tried"]["tiny float16 x1"])
    assert not any("attention" in line or "sample" in line for line in report.facts["tried"]["tiny int4 x1"])


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        (1e-2, 1, "OtherBits: other bits than the rules at 16"),
        (RuntimeError("PassManager::run failed"), 1, "RuntimeError: PassManager::run failed"),
        (OutOfResources(250000, 232448, "shared memory"), 0, "left out: out of resource: shared memory"),
    ],
)
def test_a_value_that_fails_is_a_row(tmp_path: Path, what: Any, code: int, said: str) -> None:
    path = tmp_path / "t.json"
    ops = spoiled(lambda how: what if how.trigger == "late" else None)
    with Report("tune_kernels", argparse.Namespace(json=None)) as report, torch.inference_mode():
        tuning(ops, report, path).cell(Cell("tiny", "float16", 1))
    table = tuned.read(path)
    assert table.settings("gate_up", 16, (352, 64), 1) is None
    assert table.settings("linear_add", 16, (64, 176), 1).trigger == "late"
    failed = [row for row in report.rows if "problem" in row]
    together = " + ".join(("gate_up", "qkv_rope_store", "linear_add down", "linear_add o"))
    assert {(row["op"], row["aspect"]) for row in failed} == {(together, "trigger"), ("gate_up", "trigger")}
    assert all(row["problem"].startswith(said) for row in failed)
    assert report.code == code


def test_when_time_is_up_finished_chains_are_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with Report("tune_kernels", argparse.Namespace(json=None)) as report, torch.inference_mode():
        ours = tuning(reference, report, path, left=lambda: 0.0 if path.exists() else 1.0)
        with pytest.raises(OutOfTime):
            ours.cell(Cell("tiny", "float16", 1))
    assert {entry["op"] for entry in json.loads(path.read_text())["entries"]} == {
        "qkv_rope_store", "gate_up", "linear_add",
    }  # fmt: skip


ALONE = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def test_a_run_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """torch.cuda is a fake, and "cpu:0" the GPU."""
    card = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132)
    fake_gpu(monkeypatch, 1.0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card.name)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(launch, "dependent_launch", lambda device: True)
    monkeypatch.setattr(chains, "kernels", lambda: reference)
    monkeypatch.setattr(chains, "TOUCHED", 0)
    monkeypatch.setattr(chains, "CONTEXTS", (16, 64))
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    for number in ("turns", "repeats"):  # test_in_turn.py counts them
        monkeypatch.setattr(OnGpu, number, 1)
    options = argparse.Namespace(
        presets=["tiny"], kinds=["int8"], batches=[1, 2], seconds=1e9, processes=0, out=None, json=None
    )
    assert tune_kernels.run(options, "cpu:0") == 0
    table = tuned.read(tmp_path / "nvidia-h100-80gb-hbm3.json")
    assert (table.gpu, table.sms, table.entries) == (card.name, 132, {})  # this clock finds nothing faster
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["cell"] for row in report["rows"]] == ["tiny int8 x1", "tiny int8 x2"]
    assert report["not_measured"] == []


COMMAND = [sys.executable, str(REPO / "benchmarks" / "tune_kernels.py"), "--device", "cpu"]
ALONE["PYTHONPATH"] = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, env=ALONE, timeout=300, check=False)


@pytest.mark.usefixtures("forked")
def test_a_rehearsal(tmp_path: Path) -> None:
    out, kept = tmp_path / "table.json", tmp_path / "report.json"
    done = call("--preset", "tiny", "--batches", "1", "--kinds", "int4", "--out", str(out), "--json", str(kept))
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == json.loads(kept.read_text())
    assert (report["not_measured"], report["compiled"]) == ([], tune_kernels.REHEARSED_JOBS)
    assert report["rows"][-1]["cell"] == "tiny int4 x1"
    assert report["rows"][-1]["tried"] == len(report["tried"]["tiny int4 x1"]) > 30
    assert tuned.read(out).gpu == REHEARSAL.gpu
    before = sorted(tuned.FOLDER.iterdir())
    again = call("--batches", "1", "--kinds", "int4", "--seconds", "1e-9", "--processes", "0", "--out", str(out))
    assert again.returncode == 0, again.stderr[-2000:]
    assert json.loads(again.stdout.splitlines()[-1])["not_measured"] == ["tiny int4 x1"]
    assert sorted(tuned.FOLDER.iterdir()) == before


# tune_kernels.py, whose second cell says that it begins and does not end
ENDLESS = """
import sys, time, tune_kernels
cell, begun = tune_kernels.Tuning.cell, []

def endless(self, one):
    begun.append(one)
    if len(begun) == 2:
        print("the second", flush=True)
        while True:
            time.sleep(0.1)
    cell(self, one)

tune_kernels.Tuning.cell = endless
sys.exit(tune_kernels.main())
"""


@pytest.mark.usefixtures("forked")
def test_ctrl_c_keeps_what_was_found(tmp_path: Path) -> None:
    """It reaches the processes that compile too."""
    out = tmp_path / "table.json"
    path = os.pathsep.join([str(REPO / "benchmarks"), ALONE["PYTHONPATH"]])
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, "--device", "cpu", "--out", str(out)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**ALONE, "PYTHONPATH": path}, start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        first = list(takewhile(lambda line: line != "the second\n", running.stdout))
        assert any(line.startswith("tiny") for line in first)
        assert out.exists()
        os.killpg(running.pid, signal.SIGINT)
        said, warned = running.communicate(timeout=300)
    assert running.returncode == INTERRUPTED, warned[-2000:]
    report = json.loads(said.splitlines()[-1])
    assert report["ended"] == "interrupted"
    assert report["not_measured"][-1] == "tiny int4 x2"
    assert tuned.read(out).gpu == REHEARSAL.gpu
    assert "Traceback" not in warned


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--presets", "13b"), "--presets has 13b, wanted tiny"),
        (("--out", str(tuned.FOLDER / "x.json")), "wanted another folder"),
        (("--out", "nowhere/x.json"), "wanted a file in a folder that exists"),
        (("--seconds", "0"), "--seconds must be greater than 0"),
        (("--batches", "3"), "argument --batches: invalid choice: "),  # Python 3.13 quotes the number
    ],
)
def test_bad_options_are_named(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [*COMMAND[1:], *words])
    with pytest.raises(SystemExit) as stop:
        tune_kernels.main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
