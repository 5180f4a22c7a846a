"""bench_loop on the tiny preset, and the share of time that it reports."""

from __future__ import annotations

import json
import sys

import bench_loop
import pytest

from baize_engine.backend.cpp_ops import Joined


def test_share_counts_what_lies_within_the_time() -> None:
    calls = [(0.0, 1.5), (2.0, 2.5), (3.5, 5.0), (6.0, 7.0)]
    assert bench_loop.share(calls, 1.0, 4.0) == (0.5 + 0.5 + 0.5) / 3
    assert bench_loop.share([], 1.0, 4.0) == 0.0


def test_calls_of_plans_are_noted_only_meanwhile() -> None:
    plan = Joined("scalar")
    with bench_loop.calls_of_plans() as calls:
        plan()
        plan()
    plan()
    assert len(calls) == 2
    assert calls[0][0] <= calls[0][1] <= calls[1][0] <= calls[1][1]


def test_every_batch_and_the_mix_have_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_loop, "MIXED", (5, 9, 4))
    asked = ["--preset", "tiny", "--kinds", "float16", "int4", "--batches", "1", "3", "--steps", "4", "--runs", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_loop.py", *asked, "--context", "16"])
    assert bench_loop.main() == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = report["rows"]
    assert [(row["kind"], row["what"]) for row in rows] == [
        (kind, what) for kind in ("float16", "int4") for what in ("1 row", "3 rows", "mixed")
    ]
    assert all(0 < row["share"] < 1 for row in rows)
    assert all(row["ms/step"] > 0 for row in rows if row["what"] != "mixed")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--batches", "65"], "--batches 1 to 64"),
        (["--steps", "0"], "at least 1"),
        (["--context", "2020"], "must be 1 to 2013"),
    ],
)
def test_what_cannot_be_run_is_refused(
    asked: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_loop.py", "--preset", "125m", *asked])
    with pytest.raises(SystemExit) as stopped:
        bench_loop.main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
