"""bench_diff_add: its rows, wrong results, and the GPU's form on the CPU."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import ModuleType
from typing import Any

import bench_diff_add
import pytest
import torch
from common import measure
from reports import Report
from scripts import report_of

from baize_engine.kernels import reference


@pytest.fixture(autouse=True)
def a_card(h100: Callable[[ModuleType], None]) -> None:
    h100(bench_diff_add)


@pytest.mark.usefixtures("forked")
def test_bench_diff_add() -> None:
    found = report_of("bench_diff_add.py", "--elements", 70000, "--runs", 2)
    names = {row["implementation"] for row in found["rows"]}
    assert {"cpp-scalar", "torch"} <= names or "triton" in names
    assert all(row["GB/s"] > 0 and row["ceiling_GB/s"] > 0 for row in found["rows"])
    assert all(row["ms_p20"] <= row["ms"] <= row["ms_p80"] for row in found["rows"])


@pytest.mark.parametrize(("part", "message"), [("bits", "its bits are not"), ("sums", "its sums or counts are not")])
def test_bench_diff_add_notices(part: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_diff_add.cpp

    def wrong(implementation: str, threads: int, *tensors: torch.Tensor) -> Callable[[], Any]:
        def run_it() -> Any:
            sums, overflowed, nonfinite = right(implementation, threads, *tensors)()
            if part == "bits":
                tensors[2].view(torch.int16)[-1] ^= 1
            else:
                sums[-1] += 1e-9
            return sums, overflowed, nonfinite

        return run_it

    monkeypatch.setattr(bench_diff_add, "cpp", wrong)
    monkeypatch.setattr(bench_diff_add, "memory_bandwidth", lambda threads: {"read": 1.0, "copy": 1.0})
    with Report("diff_add", argparse.Namespace()) as report:
        bench_diff_add.cpu_rows(report, 70000, 1)
    assert report.code == 1
    for row in report.rows:  # torch is right, whatever the others are
        assert "GB/s" in row if row["implementation"] == "torch" else message in row["problem"], row
    assert [row["implementation"] for row in report.rows].count("torch") == len(bench_diff_add.COMBINATIONS)


def test_the_gpu_form_of_bench_diff_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code on the CPU: the kernel is the reference op, the clock the host's."""

    def launch(
        base: torch.Tensor, diff: torch.Tensor, out: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor
    ) -> None:
        made, stats = reference.diff_add(base, diff, out.dtype)
        out.copy_(made)
        sums.copy_(stats.chunk_sums)
        counts.zero_()
        counts[0, 0], counts[1, 0] = int(stats.overflowed), int(stats.nonfinite) + wrong

    monkeypatch.setattr("baize_engine.kernels.diff_add.launch", launch)
    monkeypatch.setattr("gpu.gpu_spread", lambda calls, repeats: measure(calls[0], repeats))
    for wrong in (0, 1):
        with Report("diff_add", argparse.Namespace()) as report:
            bench_diff_add.gpu_rows(report, 70000, 2, "cpu")
        assert report.code == wrong
        assert [row["implementation"] for row in report.rows if "GB/s" in row].count("triton") == 3 * (1 - wrong)
        assert [row["implementation"] for row in report.rows if "GB/s" in row].count("torch") == 3
        assert all(row["of_specified"] == pytest.approx(row["GB/s"] / 3350) for row in report.rows if "GB/s" in row)
