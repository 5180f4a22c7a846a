"""profile_step.py's way on a GPU, without one: real plans whose launches go nowhere, a clock, and made-up traces."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import attribution
import decode_step
import fake_gpu
import marked_steps
import ncu
import profile_step
import pytest
import reports
import roofline
import torch
from decode_step import DecodeStep
from step_ops import OPS

from baize_engine.backend import devices
from baize_engine.kernels import tuned

LIMITS = {"read_GB/s": 2900.0, "copy_GB/s": 3000.0, "matmul_TFLOP/s": 700.0}
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(autouse=True)
def no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.without_launches(monkeypatch)


@pytest.fixture
def profiled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """Runs the script as on an H100; its exit code and report. `trace`: what the profiler makes of the plan's launches."""
    clock = fake_gpu.install(monkeypatch)
    for module in (reports, profile_step):
        monkeypatch.setattr(module, "device_name", lambda device: fake_gpu.Properties.name)
    monkeypatch.setattr(devices, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(roofline, "ceilings", lambda *_: LIMITS)
    monkeypatch.setattr(tuned, "of_device", lambda device: tuned.NO_TABLE)
    monkeypatch.setattr(profile_step, "random_model", lambda *_: fake_gpu.model("tiny", device="cpu"))
    monkeypatch.setitem(sys.modules, "pynvml", fake_gpu.nvml())
    made = DecodeStep.of

    def on_the_gpu(*arguments: Any) -> DecodeStep:
        step = made(*arguments)
        step = replace(step, model=replace(step.model, device="cuda"))
        run_plan = step.state.run

        def run_graph(*bounds: int) -> None:
            run_plan(*bounds)
            clock.now += 1e-3

        monkeypatch.setattr(step.state, "run", run_graph)
        return step

    monkeypatch.setattr(DecodeStep, "of", on_the_gpu)

    def run(*words: str, trace: Callable[[list[attribution.Launch]], dict[str, Any]] = fake_gpu.trace) -> Any:
        expected = fake_gpu.launches("tiny", 1)
        fake_gpu.install_profiler(monkeypatch, lambda: trace(expected))
        monkeypatch.setattr(sys, "argv", ["profile_step.py", "--preset", "tiny", "--context", "40", *words])
        code = profile_step.main()
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_the_whole_profile(profiled: Run, tmp_path: Path) -> None:
    page = tmp_path / "summary.md"
    code, found = profiled("--markdown", str(page), "--trace", str(tmp_path / "trace.json"))
    assert (code, found["notes"]) == (0, [])
    assert (found["card"], found["specified_GB/s"], found["tuned"]) == ("H100 SXM", 3350, "rules")
    assert found["start"].keys() == {"weights_s", "first_step_s", "second_state_s", "kernels", "compile_s"}
    start = {"kernels": "0 of 0 compiled, the rest from the cache", "compile_s": 0}  # launches go nowhere here
    assert {key: found["start"][key] for key in start} == start
    assert found["memory"] == {"held_GB": 26, "peak_GB": 26, "reserved_GB": 28}  # made the weights with 27
    assert found["gpu_state"].keys() == {"before", "under load", "after"}
    rows = {row["op"]: row for row in found["rows"]}
    assert list(rows) == ["step", *OPS]
    for name, row in rows.items():
        if name != "advance":
            assert row["of_specified"] == pytest.approx(row["GB/s"] / 3350)
            assert row["of_copy"] == pytest.approx(row["GB/s"] / 3000)
    kernels = {(row["op"], row["kernel"].split()[0]): row for row in found["kernels"]}
    assert len(kernels) == len(OPS) + 1  # attention has two
    assert sum(row["us"] for row in kernels.values()) + found["gaps_us"] == pytest.approx(found["step_us"])
    assert kernels["linear_add down", "_product_kernel"]["layers"] == "0-1"
    assert rows["attention"]["in_step_us"] == pytest.approx(2 * 2 * 10)  # two layers, two kernels of 10 us
    assert rows["head"]["in_step_of_specified"] == pytest.approx(rows["head"]["bytes"] / 10e-6 / 3350e9)
    assert [row.get("bubble_us") for row in found["steps"]] == [None, 10]
    assert json.loads((tmp_path / "trace.json").read_text()) == fake_gpu.trace(fake_gpu.launches("tiny", 1))
    text = page.read_text()
    assert "- specified bandwidth: 3350 GB/s" in text
    assert "Peaks are counted from the finished weights on" in text
    assert "`compile_s`: of the kernels that were compiled, by Triton" in text
    assert "power cap, thermal, by software" in text


def test_a_trace_that_cannot_be_written_costs_nothing_else(profiled: Run, tmp_path: Path) -> None:
    unwritable = tmp_path / "trace.json"
    unwritable.symlink_to(tmp_path / "gone" / "trace.json")
    code, found = profiled("--trace", str(unwritable))
    assert code == 1
    (problem,) = [row for row in found["rows"] if "problem" in row]
    assert problem["part"] == "trace file"
    assert problem["problem"].startswith("FileNotFoundError")
    assert len(found["steps"]) == 2
    assert len(found["kernels"]) == len(OPS) + 1
    assert all("in_step_us" in row for row in found["rows"] if row.get("op") in OPS)


def test_waits_are_in_no_ops_time(profiled: Run) -> None:
    """Each kernel begins 6 us before the one before it ends, and is traced as 6 us longer than it takes."""
    code, found = profiled(trace=lambda expected: fake_gpu.trace(expected, steps=3, us=10, gap=0, early=6))
    assert code == 0
    assert found["gaps_us"] == 0
    assert {row["us"] / row["calls"] for row in found["kernels"]} == {10}
    assert sum(row.get("in_step_us", 0) for row in found["rows"]) == pytest.approx(found["step_us"])
    assert [row["device_us"] for row in found["steps"]] == pytest.approx([found["step_us"]] * 3)


def test_no_kernel_in_the_trace_is_a_note(profiled: Run) -> None:
    """CUPTI not allowed: what needs no counters is measured all the same."""
    code, found = profiled(trace=lambda expected: {"traceEvents": []})
    assert code == 0
    (note,) = found["notes"]
    assert "(CUPTI)" in note
    assert "kernels" not in found
    assert [row["op"] for row in found["rows"]] == ["step", *OPS]
    assert not any("in_step_us" in row for row in found["rows"])


def test_kernels_that_are_not_the_plans_go_by_their_names(profiled: Run) -> None:
    code, found = profiled(trace=lambda expected: fake_gpu.trace(expected[1:]))
    assert code == 0
    (note,) = found["notes"]
    assert note.startswith("kernels are not told apart by op and layer: kernel 0 of the step is _embed_kernel")
    assert {(row["op"], row["layers"]) for row in found["kernels"]} == {("", "")}
    products = [row for row in found["kernels"] if row["kernel"] == "_product_kernel 1x2x1"]
    assert [row["calls"] for row in products] == [4]  # o and down of two layers, not told apart


def test_without_nvml_and_with_another_card(profiled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(profile_step, "device_name", lambda device: "NVIDIA Thing 1")
    code, found = profiled()
    assert code == 0
    assert found["notes"] == [
        "card not in the table (benchmarks/cards.py): NVIDIA Thing 1",
        "clocks, power and temperature: not read, absent (package nvidia-ml-py)",
    ]
    assert "gpu_state" not in found
    assert all("of_specified" not in row for row in found["rows"])
    assert found["rows"][0]["of_copy"] == pytest.approx(found["rows"][0]["GB/s"] / 3000)


def test_one_op_that_fails_costs_itself_alone(profiled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def spread(calls: list[Any], repeats: int) -> Any:
        if len(calls) == 1:
            raise RuntimeError("operation not permitted when stream is capturing")
        return measured(calls, repeats)

    measured = decode_step.gpu_spread
    monkeypatch.setattr(decode_step, "gpu_spread", spread)
    code, found = profiled()
    assert code == 1
    lost = [row["op"] for row in found["rows"] if "problem" in row]
    assert lost == ["advance", "embed", "head", "sample"]
    assert [row["op"] for row in found["rows"] if "us" in row] == ["step", *(op for op in OPS if op not in lost)]


def test_a_model_that_does_not_fit_is_reported(profiled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(profile_step, "random_model", too_large)
    code, found = profiled()
    assert code == 1
    assert found["rows"] == [{"part": "model", "problem": "OutOfMemoryError: CUDA out of memory"}]


def test_bytes_by_ncu(profiled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def count(words: list[str]) -> list[ncu.Counted]:
        asked.append(words)
        return [ncu.Counted(each.kernel, each.grid, 1000.0, 10.0) for each in fake_gpu.launches("tiny", 1)]

    monkeypatch.setattr(ncu, "count", count)
    code, found = profiled("--ncu", "--tuned", "none")
    assert (code, found["notes"]) == (0, [])
    (words,) = asked
    assert Path(words[0]).name == "profile_step.py"
    chosen = profile_step.options().parse_args(words[1:])
    assert (chosen.preset, chosen.context, chosen.nvtx, chosen.capture_steps) == ("tiny", 40, True, range(1, 2))
    assert chosen.tuned == "none"
    attention, join = (row for row in found["dram"] if row["op"] == "attention")
    assert attention["kernel"] != join["kernel"]
    assert (attention["calls"], attention["read"], attention["written"]) == (2, 2000, 20)
    assert (join["calls"], attention["op_read"], "op_read" in join) == (2, 4000, False)
    dram = {row["op"]: row for row in found["dram"]}
    gate_up = next(row for row in found["rows"] if row["op"] == "gate_up")
    assert dram["gate_up"]["of_modelled"] == pytest.approx(2020 / gate_up["bytes"])
    assert "modelled_read" not in dram["advance"]


def test_without_ncu_it_is_said(profiled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ncu.shutil, "which", lambda name: None)
    code, found = profiled("--ncu")
    assert code == 0
    assert found["notes"] == ["bytes not counted: ncu is absent (not on the PATH)"]


@pytest.mark.parametrize("words", [["--capture_steps", "1:3"], ["--nvtx"], ["--nvtx", "--capture_steps", "0:1"]])
def test_marked_steps(words: list[str], profiled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said = fake_gpu.install_ranges(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["profile_step.py", "--preset", "tiny", "--context", "40", *words])
    assert profile_step.main() == 0
    assert said.count("start") == said.count("stop") == 1
    steps = [entry for entry in said if entry.startswith("> step")]
    first, last = {"1:3": (1, 3), "--nvtx": (2, 3), "0:1": (0, 1)}[words[-1]]
    assert steps == [f"> step {number}" for number in range(last)]
    within = said[said.index("start") + 1 : said.index("stop")]
    assert [entry for entry in within if entry.startswith("> step")] == steps[first:]
    assert sum(entry.startswith(">") for entry in said) == said.count("<")
    if "--nvtx" not in words:
        assert within == ["> step 1", "<", "> step 2", "<"]


def test_ranges_are_those_of_layers_and_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    said = fake_gpu.install_ranges(monkeypatch)
    fake_gpu.install(monkeypatch)
    step = DecodeStep.of(fake_gpu.model("tiny", device="cpu"), 1, 40)
    marked_steps.run_by_op(step.plan(), step.places())
    layer = [">", "qkv_rope_store", "attention", "linear_add o", "gate_up", "linear_add down"]
    assert said[:4] == ["> advance", "<", "> embed", "<"]
    assert said[4:6] == ["> layer 0", "> qkv_rope_store"]
    assert [entry for entry in said if entry.startswith("> ")][3:8] == [f"> {op}" for op in layer[1:]]
    assert said[-6:] == ["<", "<", "> head", "<", "> sample", "<"]  # the last op's, the last layer's
    assert said.count("<") == len(said) / 2


def test_seconds_of_a_step_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By events around each of the steps, the first one not counted, while something else looks at the machine."""
    clock = fake_gpu.install(monkeypatch)
    step = DecodeStep.of(fake_gpu.model("tiny", device="cpu"), 2, 40)
    step = replace(step, model=replace(step.model, device="cuda"))
    runs: list[float] = []

    def run(bound: int) -> None:
        runs.append(1.0 if not runs else 0.001 * len(runs))
        clock.now += runs[-1]

    monkeypatch.setattr(step.state, "run", run)
    looked = []
    found = step.seconds(3, lambda: looked.append(len(runs)))
    assert looked == [4]
    assert (found.median, len(runs)) == (pytest.approx(0.002), 4)


def test_time_of_an_op_is_that_of_all_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch, replay_s=2e-3)
    found = decode_step.time_on_gpu([lambda: None] * 40, 5)
    assert found.median == pytest.approx(2e-3)
