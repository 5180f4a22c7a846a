"""Prefill and profile benchmarks: what they compute from made-up events and costs, and both scripts on the CPU."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench_prefill
import profile_step
import pytest
import roofline
import torch
from assets import REPO
from common import Spread
from models import KINDS, random_model, transformers_model
from shapes import PRESETS
from trace_events import Event, device_events, gaps, kernel_rows, span

from baize_engine.kernels import quantized, reference
from baize_engine.model import cost, names
from baize_engine.model.llama import Llama

LIMITS = {"read_GB/s": 80.0, "copy_GB/s": 100.0, "matmul_TFLOP/s": 2.0}
OPS = ["qkv_rope_store", "attention", "linear_add o", "gate_up", "linear_add down"]


def run(script: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(REPO / "benchmarks" / script), "--device", "cpu", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_gaps_count_idle_time_only() -> None:
    """b begins within a, c before the end of a, though after b's: a launch that overlaps leaves no gap, nor a negative one."""
    events = [Event("a", 100, 10), Event("b", 102, 3), Event("c", 109, 2), Event("d", 115, 5), Event("e", 120, 1)]
    assert gaps(events) == [0, 0, 0, 4, 0]
    assert span(events) == 21
    assert gaps([]) == []


def test_kernels_by_name() -> None:
    events = [Event("a", 0, 2), Event("b", 3, 5), Event("a", 11, 2), Event("b", 13, 1)]
    first, second = kernel_rows(events)
    assert first == {"kernel": "b", "calls": 2, "us": 6, "share": 0.6, "gap_before_us": 0.5}
    assert second == {"kernel": "a", "calls": 2, "us": 4, "share": 0.4, "gap_before_us": 1.5}


def test_only_what_ran_on_the_gpu_counts() -> None:
    launch = {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 1, "dur": 90}
    copy = {"ph": "X", "cat": "gpu_memcpy", "name": "copy", "ts": 30.5, "dur": 1}
    flow = {"ph": "f", "cat": "ac2g", "name": "ac2g", "ts": 10}
    kernels = [
        {"ph": "X", "cat": "kernel", "name": "product", "ts": ts, "dur": 4.25, "args": {"grid": [rows, 1, 1]}}
        for ts, rows in ((20.0, 64), (10.0, 32))
    ]
    assert device_events({"traceEvents": [launch, copy, flow, *kernels]}) == [
        Event("product 32x1x1", 10.0, 4.25), Event("product 64x1x1", 20.0, 4.25), Event("copy", 30.5, 1.0),
    ]  # fmt: skip


def test_roofline_rows() -> None:
    times = {
        "advance": Spread(1e-6, 1e-6, 2e-6),
        "moves": Spread(2e-6, 1e-6, 3e-6),
        "computes": Spread(4e-6, 4e-6, 4e-6),
    }
    costs = [cost.OpCost("computes", 4_000_000, 600, 400), cost.OpCost("moves", 1000, 99_000, 1000)]
    rows = {row["op"]: row for row in roofline.rows(times, dict.fromkeys(times, 3), costs, LIMITS)}
    assert rows["advance"] == {"op": "advance", "calls": 3, "us": 1.0, "p20": 1.0, "p80": 2.0}
    moves, computes = rows["moves"], rows["computes"]
    assert (moves["GB/s"], moves["intensity"]) == pytest.approx((50.0, 0.01))
    assert (moves["ceiling_us"], moves["share"]) == pytest.approx((1.0, 0.5))  # 100 kB at 100 GB/s
    assert (computes["TFLOP/s"], computes["ceiling_us"], computes["share"]) == pytest.approx((1.0, 2.0, 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_random_models(kind: str) -> None:
    """As the loader would have made them: every packed weight with its shape and kind, the bytes that cost.py counts."""
    model = random_model(PRESETS["tiny"], kind, "cpu")
    assert {name: tuple(weight.shape) for name, weight in model.weights.items()} == names.packed(model.config)
    assert sum(weight.nbytes for weight in model.weights.values()) == cost.weight_bytes(model.config, kind)
    coded = {name for name, weight in model.weights.items() if not isinstance(weight, torch.Tensor)}
    assert coded == (names.quantized(model.config) if kind in ("int8", "int4") else set())
    again = random_model(PRESETS["tiny"], kind, "cpu")
    one, two = (quantized.dequantize(m.weights[names.layer(1, names.DOWN)]) for m in (model, again))
    assert torch.equal(one, two)
    assert float(one.std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.weights[names.NORM].float().mean()) == pytest.approx(1, abs=0.01)


def test_op_names_are_those_of_the_costs() -> None:
    model = random_model(PRESETS["tiny"], "int8", "cpu")
    with torch.inference_mode():
        state, bound = profile_step.prepared(model, 3, 40)
        found = profile_step.op_names(state.ops(bound))
        assert found == ["advance", "embed", *OPS, *OPS, "head", "sample"]
        before = [state.positions.clone(), state.slots.clone()]
        state.run(bound)  # every repeat is the same step
    assert state.lens.tolist() == [40] * 3
    assert torch.equal(before[0], state.positions)
    assert torch.equal(before[1], state.slots)
    assert {each.name for each in cost.decode_step(model.config, "int8", 3, 40)} == {*found} - {"advance"}


def test_bench_prefill() -> None:
    """The rows of a GPU, here of the CPU: ours, the reference ops and transformers."""
    pytest.importorskip("transformers")
    options = argparse.Namespace(preset="tiny", tokens=[20, 200], runs=2, baselines=True)
    rows, facts = bench_prefill.bench(options, "float16", "cpu")
    by_engine = {row["engine"]: row for row in rows if row["tokens"] == 200}
    assert by_engine.keys() == {"baize float16", "torch float16", "transformers float32"}
    for row in rows:
        assert 0 < row["p20"] <= row["ms"] <= row["p80"]
        assert row["tok/s"] == pytest.approx(row["tokens"] / row["ms"] * 1e3)
        assert row["MFU"] == pytest.approx(row["TFLOP/s"] / facts["matmul_TFLOP/s"])
    config = random_model(PRESETS["tiny"], "float16", "cpu").config
    flops = sum(op.flops for op in cost.prefill(config, 200, "float16", "float32"))
    mine = by_engine["baize float16"]
    assert mine["TFLOP/s"] * mine["ms"] * 1e9 == pytest.approx(flops)


def test_bench_prefill_notices_wrong_logits() -> None:
    model = random_model(PRESETS["tiny"], "float16", "cpu")
    cache = model.new_cache(80)
    bench_prefill.check("baize", lambda ids: bench_prefill.ours(model, cache, ids), model)
    weights = {**model.weights, names.HEAD: model.weights[names.HEAD].roll(1, 0)}
    wrong = Llama(model.config, weights, reference)
    with pytest.raises(SystemExit, match="the last logits are"):
        bench_prefill.check("baize", lambda ids: bench_prefill.ours(wrong, cache, ids), model)
    with pytest.raises(SystemExit, match="are nan off"):
        bench_prefill.check("baize", lambda ids: torch.full((1, 1000), float("nan")), model)


@pytest.mark.parametrize("kind", ["float16", "int4"])
def test_transformers_gets_the_same_weights(kind: str) -> None:
    pytest.importorskip("transformers")
    model = random_model(PRESETS["tiny"], kind, "cpu")
    theirs = transformers_model(model, PRESETS["tiny"], torch.float32)
    bench_prefill.check("transformers", lambda ids: bench_prefill.theirs(theirs, "cpu", ids), model)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report and the trace of the script's run."""
    folder = tmp_path_factory.mktemp("profile")
    files = ["--json", folder / "report.json", "--trace", folder / "trace.json"]
    found = run("profile_step.py", "--preset", "tiny", "--batch", 2, "--context", 30, "--repeats", 3, *files)
    assert found == json.loads((folder / "report.json").read_text())
    return folder


def test_profile_step(profile: Path) -> None:
    found = json.loads((profile / "report.json").read_text())
    assert (found["bench"], found["events"]) == ("profile_step", "ops")
    rows, kernels = ({row[key]: row for row in found[part]} for key, part in (("op", "rows"), ("kernel", "kernels")))
    assert rows.keys() == kernels.keys() == {"advance", "embed", *OPS, "head", "sample"}
    assert all(rows[name]["calls"] == kernels[name]["calls"] == (2 if name in OPS else 1) for name in rows)
    assert all(0 < row["p20"] <= row["us"] <= row["p80"] for row in rows.values())
    assert all(row["share"] > 0 for name, row in rows.items() if name != "advance")
    assert sum(row["share"] for row in kernels.values()) == pytest.approx(1)
    assert sum(row["us"] for row in kernels.values()) + found["gaps_us"] == pytest.approx(found["step_us"])
    config = random_model(PRESETS["tiny"], "float16", "cpu").config
    wanted = {each.name: each for each in cost.decode_step(config, "float16", 2, 30, "float32")}
    for name, each in wanted.items():
        assert (rows[name]["bytes"], rows[name]["flops"]) == (each.bytes, each.flops)


def test_the_trace_is_a_chrome_trace(profile: Path) -> None:
    trace = json.loads((profile / "trace.json").read_text())
    spans = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    assert all({"name", "ts", "dur", "pid", "tid"} <= event.keys() for event in spans)
    assert [event["name"] for event in spans if event["cat"] == "user_annotation"] == ["step"]
    assert device_events(trace) == []


def test_the_picture_of_a_report(profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.png"
    monkeypatch.setattr(
        sys, "argv", ["profile_step.py", "--from_json", str(profile / "report.json"), "--picture", str(out)]
    )
    assert profile_step.main() == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.stat().st_size > 10_000
    with pytest.raises(SystemExit, match="no op with flops"):
        roofline.draw({"rows": [{"op": "embed", "flops": 0}]}, out)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["profile_step.py", "--picture", str(tmp_path / "out.png")])
    monkeypatch.setattr(profile_step, "profiled", lambda *arguments: pytest.fail("measured before it refused"))
    with pytest.raises(SystemExit, match=r"--from_json results\.json --picture out\.png"):
        profile_step.main()


def test_from_json_needs_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["profile_step.py", "--from_json", str(tmp_path / "report.json")])
    with pytest.raises(SystemExit):
        profile_step.main()
    assert "--from_json needs --picture" in capsys.readouterr().err
