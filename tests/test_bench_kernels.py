"""bench_kernels through the interpreter: every op is checked and reported, a wrong result and a missing GPU are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import bench_kernels
import pytest
import torch
from assets import REPO
from shapes import PRESETS

from baize_engine.model import cost
from baize_engine.model.config import ModelConfig


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, str(REPO / "benchmarks/bench_kernels.py"), *arguments],
        env={**known, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_op_is_checked_and_reported() -> None:
    small = ["--device", "cpu", "--preset", "tiny", "--rows", "3", "--kinds", "int4", "--contexts", "20", "--quick"]
    done = run(*small, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    shape = PRESETS["tiny"]
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, "float16"))
    assert {row["op"] for row in rows} == set(bench_kernels.work(config, "int4", 3, 20, False)) - {"sample"}
    for row in rows:
        assert row["us"] > 0 < row["torch_us"], row
        assert row["GB/s"] > 0 < row["share"], row
    layer = {c.name: c for c in cost.decode_step(config, "int4", 3, 20)}["gate_up"]
    row = next(row for row in rows if row["op"] == "gate_up")
    assert row["GB/s"] * row["us"] * 1e3 * config.num_layers == pytest.approx(layer.bytes)


def test_a_wrong_result_ends_the_run() -> None:
    right = torch.tensor([1.0, 2.0])
    bench_kernels.check("op", [right], [right], 0.0)
    with pytest.raises(SystemExit, match=r"op: its error is 0\.5"):
        bench_kernels.check("op", [torch.tensor([1.0, 1.0])], [right], 1e-2)
    with pytest.raises(SystemExit, match="nan"):
        bench_kernels.check("op", [torch.tensor([1.0, float("nan")])], [right], 1e-2)
    with pytest.raises(SystemExit, match=r"0\.25"):
        bench_kernels.check("ids", [torch.tensor([1, 2, 3, 5])], [torch.tensor([1, 2, 3, 4])], 0.05)


@pytest.mark.parametrize("arguments", [(), ("--device", "cpu")])
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_what_it_needs(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert "bench_kernels needs a GPU" in done.stderr
