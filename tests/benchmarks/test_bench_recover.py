"""bench_recover on a tiny pair: its rows, and results that are wrong."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import bench_recover
import pytest
from make_pair import make_pair
from reports import Report
from scripts import report_of

from baize_engine import recover
from baize_engine.checkpoint.index import read_index


@pytest.mark.usefixtures("forked")
def test_bench_recover(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned/mine").touch()  # the folder is a user's: what is in it stays
    file, short = tmp_path / "report.json", ["--runs", 1, "--reference_runs", 0, "--warm", "--device", "cpu"]
    found = report_of("bench_recover.py", "--preset", "1b", "--pair", pair, "--out", tmp_path, "--json", file, *short)
    assert found == json.loads(file.read_text())
    assert {"bench", "device", "commit", "versions", "rows"} <= found.keys()
    assert (found["bench"], found["preset"], found["cache"]) == ("recover", "tiny", "warm")
    assert [(row["method"], row["device"], row["run"]) for row in found["rows"]] == [
        ("recover", "cpu", 0), ("copy", "cpu", 0), ("plain copy", "cpu", 0),
    ]  # fmt: skip
    methods = {row["method"]: row for row in found["methods"]}
    assert methods.keys() == {"recover", "copy", "plain copy"}
    assert methods["recover"]["reference_to_it"] == "not measured"
    assert methods["plain copy"]["to_plain_copy"] == 1
    assert all(row["p20"] <= row["wall_s"] <= row["p80"] and row["peak_MiB"] > 1 for row in methods.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "tuned"]
    assert (tmp_path / "tuned/mine").exists()


def test_bench_recover_notices_a_wrong_result(pair: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    recover(pair / "base", pair / "diff", out, device="cpu", progress=False)
    bench_recover.check_result(pair / "base", pair / "diff", out)
    entry = read_index(out).entries["model.norm.weight"]
    content = bytearray(entry.path.read_bytes())
    content[entry.offset + 4] ^= 1
    entry.path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"model\.norm\.weight is not"):
        bench_recover.check_result(pair / "base", pair / "diff", out)


def test_a_wrong_result_is_not_timed(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As a user would see it: a recover that writes another pair's result makes the script fail before it times anything."""
    make_pair("tiny", tmp_path / "other", seed=5)
    child = bench_recover.child

    def wrong(way: bench_recover.Way, base: Path, diff: Path, out: Path) -> list[str]:
        return child(way, tmp_path / "other/base", diff, out)

    monkeypatch.setattr(bench_recover, "child", wrong)
    words = ["--pair", str(pair), "--out", str(tmp_path), "--warm", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["bench_recover.py", *words])
    assert bench_recover.main() == 1
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert (row["method"], row["device"]) == ("recover", "cpu")
    assert "is not float32" in row["problem"]
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.usefixtures("forked")
def test_recover_on_a_gpu_has_the_cpu_beside_it(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The children are told the device; one that fails there costs its own rows. No GPU is needed: recover is the CPU's."""
    child, told = bench_recover.child, []

    def noted(way: bench_recover.Way, base: Path, diff: Path, out: Path) -> list[str]:
        told.append(child(way, base, diff, out))
        return child(way._replace(device="cpu"), base, diff, out)

    monkeypatch.setattr(bench_recover, "child", noted)
    options = argparse.Namespace(json=None, runs=2, reference_runs=0, cold=False)
    with Report("recover", options) as report:
        bench_recover.bench(options, "cuda", pair / "base", pair / "diff", tmp_path / "tuned", report)
    devices = [words[words.index("--device") + 1] for words in told if "--device" in words]
    assert devices[:2] == ["cuda", "cpu"]
    assert sorted(devices) == ["cpu"] * 3 + ["cuda"] * 3
    assert [(row["method"], row["device"], row["runs"]) for row in report.facts["methods"]] == [
        ("recover", "cuda", 2), ("recover", "cpu", 2), ("copy", "cpu", 2), ("plain copy", "cpu", 2),
    ]  # fmt: skip
    monkeypatch.setattr(bench_recover, "child", child)  # and now the GPU is not there
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options.runs = 1
    with Report("recover", options) as report:
        bench_recover.bench(options, "cuda", pair / "base", pair / "diff", tmp_path / "tuned", report)
    assert "recover failed with 1" in report.rows[0]["problem"]
    assert {(row["method"], row["device"]) for row in report.rows[1:]} == {
        ("recover", "cpu"), ("copy", "cpu"), ("plain copy", "cpu"),
    }  # fmt: skip
    assert report.code == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "said"), [(["--device", "gpu"], "--device: device 'gpu' is not known"), (["--runs", "0"], "--runs is 0")]
)
def test_bench_recover_refuses(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_recover.py", *words])
    with pytest.raises(SystemExit):
        bench_recover.main()
    assert said in capsys.readouterr().err
