"""Reports: rows are there as soon as they are measured, whatever becomes of the run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import reports
import torch
from assets import REPO
from reports import Report

OPTIONS = argparse.Namespace(json=None)


def last_line(capsys: pytest.CaptureFixture) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_rows_are_printed_and_kept_as_they_come(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "report.json"
    with Report("toy", argparse.Namespace(json=file), facts={"preset": "tiny"}) as report:
        report.row({"batch": 1, "ms": 2.5})
        assert capsys.readouterr().out.split() == ["batch", "ms", "1", "2.5"]
        assert json.loads(file.read_text())["rows"] == [{"batch": 1, "ms": 2.5}]
        report.row({"batch": 8, "ms": 1 / 3})
        assert capsys.readouterr().out.split() == ["8", "0.3333"]  # the same heads are not said again
        report.facts["copy_GB/s"] = 40.0
    whole = last_line(capsys)
    assert whole == json.loads(file.read_text())
    assert {"device", "commit", "versions"} < whole.keys()
    assert (whole["bench"], whole["preset"], whole["copy_GB/s"], len(whole["rows"])) == ("toy", "tiny", 40.0, 2)
    assert (report.code, "ended" in whole) == (0, False)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_case_that_fails_costs_itself_alone(capsys: pytest.CaptureFixture) -> None:
    with Report("toy", OPTIONS) as report:
        for kind in ("float16", "int8", "int4"):
            with report.case(kind=kind):
                if kind == "int8":
                    raise RuntimeError("out of memory\nand a long story")
                if kind == "int4":
                    raise SystemExit("its error is 0.3, wanted at most 0.01")
                report.row({"kind": kind, "ms": 1})
    assert last_line(capsys)["rows"] == [
        {"kind": "float16", "ms": 1},
        {"kind": "int8", "problem": "RuntimeError: out of memory"},
        {"kind": "int4", "problem": "its error is 0.3, wanted at most 0.01"},
    ]
    assert report.code == 1


def test_an_error_between_cases_is_not_hidden(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), Report("toy", OPTIONS) as report:
        report.row({"ms": 1})
        _ = 1 / 0
    whole = last_line(capsys)
    assert (whole["rows"], whole["ended"]) == ([{"ms": 1}], "division by zero")


def test_a_lost_device_ends_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def lost(device: str) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    monkeypatch.setattr(reports, "device_name", lambda device: "some GPU")
    measured = []
    with Report("toy", OPTIONS, "cuda") as report:
        for number in range(3):
            with report.case(number=number):
                measured.append(number)
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert measured == [0]
    assert report.code == 1
    assert last_line(capsys)["ended"].startswith("the GPU is lost to this process: CUDA error")


def test_ctrl_c_keeps_the_rows(tmp_path: Path) -> None:
    code = (
        "import argparse, sys, time; sys.path.insert(0, sys.argv[1]); from reports import Report\n"
        "with Report('toy', argparse.Namespace(json=None)) as report:\n"
        "    report.row({'ms': 1})\n"
        "    with report.case(kind='slow'):\n"
        "        print('begun', flush=True)\n"
        "        time.sleep(600)\n"
        "sys.exit(report.code)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(REPO / "benchmarks")], stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's background job ignores it
    ) as child:  # fmt: skip
        assert child.stdout is not None
        first = [child.stdout.readline() for _ in range(3)]
        os.kill(child.pid, signal.SIGINT)
        rest = child.stdout.read()
    assert first[1].strip() == "1"
    assert child.returncode == 130
    whole = json.loads(rest.splitlines()[-1])
    assert (whole["rows"], whole["ended"]) == ([{"ms": 1}, {"kind": "slow", "problem": "interrupted"}], "interrupted")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    code = (
        "import argparse, pathlib, sys; sys.path.insert(0, sys.argv[1]); from reports import Report\n"
        "with Report('toy', argparse.Namespace(json=pathlib.Path(sys.argv[2]))) as report:\n"
        "    input()\n"
        "    report.row({'number': 1})\n"
        "sys.exit(report.code)\n"
    )
    file, command = tmp_path / "report.json", [sys.executable, "-c", code, str(REPO / "benchmarks")]
    with subprocess.Popen(
        [*command, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.close()
        child.stdin.write("\n")
        child.stdin.close()
        assert child.stderr is not None
        assert child.stderr.read() == ""
    assert child.returncode == 0
    assert json.loads(file.read_text())["rows"] == [{"number": 1}]


def test_a_file_in_no_folder_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no folder"):
        Report("toy", argparse.Namespace(json=tmp_path / "none" / "report.json"))


def test_a_file_that_cannot_be_written_any_more_does_not_cost_the_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    with (
        pytest.raises(FileNotFoundError),
        Report("toy", argparse.Namespace(json=folder / "report.json")) as report,
        report.case(number=1),
    ):
        report.row({"ms": 1})
        (folder / "report.json").unlink()
        folder.rmdir()
    assert last_line(capsys)["rows"] == [{"ms": 1}]
