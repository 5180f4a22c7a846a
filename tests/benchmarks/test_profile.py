"""Prefill and profile benchmarks: what they compute from made-up events and costs, and both scripts on the CPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import bench_prefill
import decode_step
import fake_gpu
import gpu
import profile_parts
import profile_step
import pytest
import roofline
import summary
import torch
from common import Spread
from decode_step import DecodeStep
from models import KINDS, random_model, transformers_model
from shapes import PRESETS
from trace_events import device_events

from baize_engine.kernels import quantized
from baize_engine.model import cost, names

LIMITS = {"read_GB/s": 80.0, "copy_GB/s": 100.0, "matmul_TFLOP/s": 2.0}
OPS = ["qkv_rope_store", "attention", "linear_add o", "gate_up", "linear_add down"]


def run(*arguments: object) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said:
        patch.setattr(sys, "argv", ["profile_step.py", "--device", "cpu", *map(str, arguments)])
        patch.setattr(
            roofline, "ceilings", lambda *_: LIMITS
        )  # the share of an op is compared with that of its bandwidth
        assert profile_step.main() == 0
    return json.loads(said.getvalue().splitlines()[-1])


def test_roofline_rows() -> None:
    against = roofline.references("cuda", LIMITS, 200.0)

    def row(name: str, spread: Spread, known: cost.OpCost | None, unit: str = "TFLOP/s") -> dict[str, Any]:
        return roofline.row(name, spread, 3, known, LIMITS, against, unit)

    assert row("advance", Spread(1e-6, 1e-6, 2e-6), None) == {
        "op": "advance", "calls": 3, "us": 1.0, "p20": 1.0, "p80": 2.0,
    }  # fmt: skip
    moves = row("moves", Spread(2e-6, 1e-6, 3e-6), cost.OpCost("moves", 1000, 99_000, 1000))
    assert (moves["GB/s"], moves["intensity"]) == pytest.approx((50.0, 0.01))
    assert (moves["ceiling_us"], moves["share"]) == pytest.approx((1.0, 0.5))  # 100 kB at 100 GB/s
    assert (moves["of_specified"], moves["of_copy"]) == pytest.approx((0.25, 0.5))
    computes = row("computes", Spread(4e-6, 4e-6, 4e-6), cost.OpCost("computes", 4_000_000, 600, 400))
    assert (computes["TFLOP/s"], computes["ceiling_us"], computes["share"]) == pytest.approx((1.0, 2.0, 0.5))
    slowly = row("computes", Spread(4e-3, 4e-3, 4e-3), cost.OpCost("computes", 4_000_000, 600, 400), "GFLOP/s")
    assert (slowly["GFLOP/s"], "TFLOP/s" in slowly, slowly["ceiling_us"]) == (
        pytest.approx(1.0),
        False,
        pytest.approx(2.0),
    )


def test_ceilings_of_a_gpu_are_those_of_all_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(
        monkeypatch, replay_s=1e-3
    )  # a replay holds three calls: about 2 ms, by the first look at one call
    monkeypatch.setattr(gpu, "ceilings", lambda device: {"copy_GB/s": 3000.0, "matmul_TFLOP/s": 700.0})
    assert roofline.ceilings("meta", torch.float16) == {
        "read_GB/s": pytest.approx(2 * gpu.COPIED / 1e-3 / 1e9), "copy_GB/s": 3000.0, "matmul_TFLOP/s": 700.0,
    }  # fmt: skip
    assert roofline.matmul_peak("meta", torch.float16) == 700


def test_what_a_bandwidth_is_set_against() -> None:
    assert roofline.references("cuda:1", LIMITS, 3350.0) == {"of_specified": 3350.0, "of_copy": 100.0}
    assert roofline.references("cuda", LIMITS, None) == {"of_copy": 100.0}
    assert roofline.references("cpu", LIMITS, None) == {"of_read": 80.0}
    assert roofline.references("cuda", {}, None) == {}
    row = roofline.row(
        "moves", Spread(2e-6, 1e-6, 3e-6), 1, cost.OpCost("moves", 1000, 99_000, 1000), {}, {}, "TFLOP/s"
    )
    assert row["GB/s"] == pytest.approx(50)
    assert not {"share", "ceiling_us", "of_copy"} & row.keys()  # nothing was measured to set it against


@pytest.mark.parametrize("kind", KINDS)
def test_random_models(kind: str) -> None:
    """As the loader would have made them: every packed weight with its shape and kind, the bytes that cost.py counts."""
    model = random_model(PRESETS["tiny"], kind, "cpu")
    assert {name: tuple(weight.shape) for name, weight in model.weights.items()} == names.packed(model.config)
    held = [quantized.in_rows(w) if isinstance(w, quantized.Int4Weight) else w for w in model.weights.values()]
    assert sum(weight.nbytes for weight in held) == cost.weight_bytes(model.config, kind)
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
        step = DecodeStep.of(model, 3, 40)
        state = step.state
        found = [place.op for place in step.places()]
        assert found == ["advance", "embed", *OPS, *OPS, "head", "sample"]
        before = [state.positions.clone(), state.slots.clone()]
        step.run()  # every repeat is the same step
        step.consecutive(3)()
    assert state.lens.tolist() == [40] * 3
    assert torch.equal(before[0], state.positions)
    assert torch.equal(before[1], state.slots)
    assert {each.name for each in cost.decode_step(model.config, "int8", 3, 40)} == {*found} - {"advance"}


@pytest.mark.parametrize("rows", [2, 3])
def test_consecutive_steps_run_ahead(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where three steps are launched before the first one's tokens are read, and rows go by powers of two."""
    said: list[str] = []

    @contextmanager
    def span(name: str) -> Iterator[None]:
        said.append(name)
        yield

    monkeypatch.setattr(decode_step, "record_function", span)
    model = random_model(PRESETS["tiny"], "float16", "cpu")
    with torch.inference_mode():
        step = DecodeStep.of(model, rows, 40)
        step.consecutive(5, runs_ahead=True)()
    launch, wait = "launch", "wait"
    assert said == [launch, launch, launch, wait, launch, wait, launch, wait, wait, wait]
    assert step.state.lens.tolist() == [40] * rows


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
    files = ["--json", folder / "report.json", "--trace", folder / "trace.json", "--markdown", folder / "summary.md"]
    found = run("--preset", "tiny", "--batch", 2, "--context", 30, "--repeats", 3, *files)
    assert found == json.loads((folder / "report.json").read_text())
    return folder


def test_profile_step(profile: Path) -> None:
    found = json.loads((profile / "report.json").read_text())
    assert (found["bench"], found["events"], found["notes"]) == ("profile_step", "ops", [])
    assert (found["preset"], found["kind"], found["batch"], found["context"]) == ("tiny", "float16", 2, 30)
    rows, kernels = ({row["op"]: row for row in found[part]} for part in ("rows", "kernels"))
    step = rows.pop("step")
    assert rows.keys() == kernels.keys() == {"advance", "embed", *OPS, "head", "sample"}
    assert all(rows[name]["calls"] == kernels[name]["calls"] == (2 if name in OPS else 1) for name in rows)
    assert all(kernels[name]["layers"] == ("0-1" if name in OPS else "") for name in rows)
    assert all(row["kernel"].startswith(("cpp-", "torch", "triton")) for row in kernels.values())
    assert all(0 < row["p20"] <= row["us"] <= row["p80"] for row in rows.values())
    limits = found["ceilings"]
    speed = max(limits["read_GB/s"], limits["copy_GB/s"])
    for name in rows.keys() - {"advance"}:
        row = rows[name]
        least = max(row["bytes"] / speed / 1e3, row["flops"] / limits["matmul_TFLOP/s"] / 1e6)  # in microseconds
        assert row["share"] == pytest.approx(least / row["us"])
        assert row["of_read"] == pytest.approx(row["bytes"] / row["us"] / 1e3 / limits["read_GB/s"])
    assert sum(row["us"] for row in kernels.values()) + found["gaps_us"] == pytest.approx(found["step_us"])
    config = random_model(PRESETS["tiny"], "float16", "cpu").config
    wanted = {each.name: each for each in cost.decode_step(config, "float16", 2, 30, "float32")}
    for name, each in wanted.items():
        assert (rows[name]["bytes"], rows[name]["flops"]) == (each.bytes, each.flops)
    assert step["bytes"] == sum(each.bytes for each in wanted.values())
    assert step["of_read"] == pytest.approx(step["GB/s"] / found["ceilings"]["read_GB/s"])
    assert step["tok/s"] == pytest.approx(2e6 / step["us"])
    assert step["GFLOP/s"] == pytest.approx(step["flops"] / step["us"] / 1e3)
    assert not any("TFLOP/s" in row for row in found["rows"])
    assert [row.keys() for row in found["steps"]] == [{"step", "launch_us", "wait_us"}] * 4


def test_the_summary_of_a_profile(profile: Path) -> None:
    page = (profile / "summary.md").read_text()
    assert page.startswith("# decode step: tiny float16, batch 2, context 30\n")
    heads = [line for line in page.splitlines() if line.startswith("## ")]
    assert heads == ["## Ops", "## In the step", "## Consecutive steps", "## Start, seconds"]
    found = json.loads((profile / "report.json").read_text())
    assert summary.markdown(found) == page
    for row in found["rows"][1:]:
        assert f"\n| {row['op']} | {row['calls']} | {row['us']:.4g} |" in page


def test_the_trace_is_a_chrome_trace(profile: Path) -> None:
    trace = json.loads((profile / "trace.json").read_text())
    spans = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    assert all({"name", "ts", "dur", "pid", "tid"} <= event.keys() for event in spans)
    assert [event["name"] for event in spans if event["cat"] == "user_annotation"] == ["launch", "wait"] * 4
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
    with pytest.raises(SystemExit, match="no ceilings"):
        roofline.draw({"rows": [{"op": "head", "flops": 9}], "notes": []}, out)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["profile_step.py", "--picture", str(tmp_path / "out.png")])
    monkeypatch.setattr(profile_step, "profile", lambda *arguments: pytest.fail("measured before it refused"))
    with pytest.raises(SystemExit, match=r"--from_json results\.json --picture out\.png"):
        profile_step.main()


def test_from_json_needs_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["profile_step.py", "--from_json", str(tmp_path / "report.json")])
    with pytest.raises(SystemExit):
        profile_step.main()
    assert "--from_json needs --picture or --markdown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps 0", "--batch, --repeats, --steps must be 1 or more"),
        ("--context 1", "--context 2 to 2048"),
        ("--capture_steps 4", "'4' is not A:B with A < B"),
        ("--capture_steps 3:2", "'3:2' is not A:B"),
        ("--device cpu --nvtx", "--nvtx and --capture_steps are for the profilers of a GPU, the device is cpu"),
        ("--device cpu --capture_steps 0:1", "the device is cpu"),
    ],
)
def test_arguments_that_cannot_be(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["profile_step.py", *arguments.split()])
    with pytest.raises(SystemExit, match="2"):
        profile_step.main()
    assert message in capsys.readouterr().err


def test_ncu_on_a_cpu_is_said_to_count_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(roofline, "ceilings", lambda *_: LIMITS)
    words = "profile_step.py --preset tiny --device cpu --context 5 --repeats 1 --steps 1 --ncu"
    monkeypatch.setattr(sys, "argv", words.split())
    assert profile_step.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["notes"] == ["bytes not counted: ncu counts on a GPU only"]


@pytest.mark.parametrize("part", ["ceilings", "trace", "ops"])
def test_a_part_that_fails_costs_itself_alone(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(roofline, "ceilings", broken if part == "ceilings" else lambda *_: LIMITS)
    if part == "trace":
        monkeypatch.setattr(DecodeStep, "trace", broken)
    if part == "ops":
        monkeypatch.setattr(profile_parts, "times_on_cpu", broken)
    words = "profile_step.py --preset tiny --device cpu --context 5 --repeats 2"
    monkeypatch.setattr(sys, "argv", words.split())
    assert profile_step.main() == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row for row in found["rows"] if "problem" in row] == [{"part": part, "problem": "RuntimeError: no luck"}]
    measured = {row["op"]: row for row in found["rows"] if "us" in row}
    assert measured.keys() == ({"step"} if part == "ops" else {"step", "advance", "embed", *OPS, "head", "sample"})
    assert ("share" in measured["step"]) == ("ceilings" in found) == (part != "ceilings")
    assert ("steps" in found) == (part != "trace")
    assert ("kernels" in found) == (part != "ops")
    assert f"- {part}: RuntimeError: no luck" in summary.markdown(found)
