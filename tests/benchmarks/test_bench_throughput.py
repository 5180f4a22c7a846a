"""bench_throughput on a tiny model: its rows, its mix, and prompts that say something else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import bench_throughput
import pytest
from arrivals import Arrivals

Run = Callable[[str], tuple[int, dict[str, Any]]]  # words of the command -> exit status, report


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the script on the tiny preset, with ceilings that are given, and returns its exit status and report."""

    def call(words: str) -> tuple[int, dict[str, Any]]:
        limits = {"read_GB/s": 9.0, "copy_GB/s": 10.0, "matmul_TFLOP/s": 0.1}
        monkeypatch.setattr(bench_throughput, "ceilings", lambda *_: limits)
        monkeypatch.setattr(sys, "argv", f"bench_throughput.py --preset tiny --device cpu {words}".split())
        code = bench_throughput.main()
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def test_bench_throughput(run: Run) -> None:
    """It runs the mix together and one by one, which must agree, and tells the ceilings of both."""
    code, found = run("--prompts 8 --prompt_mean 10 --output_mean 10 --alone 3 --rows 4 --steps 4 --peers vllm")
    assert code == 0
    together, alone, absent = found["rows"]
    assert (together["prompts"], alone["prompts"]) == (8, 3)
    assert together["output_tok/s"] > 0 < found["of_batch"]
    assert found["to_alone, ceiling_tok/s"] >= 1
    for row in (together, alone):
        assert 0 < row["ttft_ms"] <= row["ttft_p99"]
        assert 0 < row["gap_ms"] <= row["gap_p99"]
        assert row["gaps"] == row["output_tokens"] - row["prompts"]
    assert isinstance(absent["output_tok/s"], str)


def test_prompts_that_say_something_else_alone_cost_that_row(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    one_by_one = bench_throughput.Timed.one_by_one

    def wrong(engine: bench_throughput.Timed, work: bench_throughput.Mix) -> Arrivals:
        found = one_by_one(engine, work)
        if len(work.prompts) == 2:  # not in the check, which has 3
            found.ids[1][-1] += 1
        return found

    def broken(*_: object) -> None:
        raise RuntimeError("no engine")

    monkeypatch.setattr(bench_throughput.Timed, "one_by_one", wrong)
    small = "--prompts 3 --alone 2 --rows 2 --steps 3 --prompt_mean 9 --output_mean 9"
    code, found = run(small)
    assert code == 1
    together, alone = found["rows"]
    assert together["engine"] == "baize float16"
    assert together["gap_p99"] > 0 < found["of_batch"]
    assert alone["problem"].startswith("prompt 1 says ")
    monkeypatch.setattr(bench_throughput.Timed, "together", broken)
    code, found = run(small)
    assert code == 1
    assert found["rows"] == [{"engine": "baize float16", "problem": "RuntimeError: no engine"}]


def test_the_mix_has_its_seed_and_its_means() -> None:
    made = bench_throughput.mix(64, 64, 192, 2048, 1000, 0)
    assert made == bench_throughput.mix(64, 64, 192, 2048, 1000, 0) != bench_throughput.mix(64, 64, 192, 2048, 1000, 1)
    assert sum(map(len, made.prompts)) / 64 == pytest.approx(64, abs=1)
    assert sum(made.outputs) / 64 == pytest.approx(192, abs=1)
    with pytest.raises(SystemExit, match=r"prompt 1 says \[4\] among others and \[5\] by itself"):
        bench_throughput.same([[1], [4], [7]], [[1], [5]])
