"""bench_kernels on the ops of the CPU, and on the GPU's through the interpreter: all are checked, a wrong result is refused."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import bench_kernels
import kernel_cases
import pytest
import segment_costs
import torch
import verify_steps
from assets import REPO
from captured import Captured
from kernel_cases import Machine, work
from shapes import PRESETS

from baize_engine.kernels import reference
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig

# bench_kernels.py in Triton's interpreter, without what slows that down, on a short prompt and timing one call of an op
INTERPRETED = """
import sys, bench_kernels, quick_interpreter
from common import measure
quick_interpreter.quicken()
bench_kernels.GPU_PROMPT = 64
bench_kernels.cpu_spread = lambda work, joined, spent: measure(joined(work[:1])[0], 1, 0)
sys.exit(bench_kernels.main())
"""


def test_every_op_is_checked_and_reported() -> None:
    small = "--device cpu --preset tiny --rows 3 --kinds int4 --contexts 20 --quick --seconds 0"
    paths = [str(REPO / "benchmarks"), str(REPO / "tests/helpers"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, *small.split()], capture_output=True, text=True, check=False,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    shape = PRESETS["tiny"]
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, "float16"))
    assert {row["op"] for row in rows} == set(work(config, "int4", 3, 20, False)) - {"sample"}
    for row in rows:
        assert row["us"] > 0 < row["torch_us"], row
        assert row["GB/s"] > 0 < row["share"], row
    layer = {c.name: c for c in cost.decode_step(config, "int4", 3, 20)}["gate_up"]
    row = next(row for row in rows if row["op"] == "gate_up")
    assert row["GB/s"] * row["us"] * 1e3 * config.num_layers == pytest.approx(layer.bytes)


def tiny_cases(m: Machine, *rows: int) -> list[kernel_cases.Case]:
    shape = PRESETS["tiny"]
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, "float16"))
    options = argparse.Namespace(kinds=bench_kernels.KINDS, rows=rows, contexts=[20])
    return [case for _, group in bench_kernels.groups(m, config, options) for case in group]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_torchs_form_of_every_op_is_right_and_can_be_captured(kind: str) -> None:
    """The reference ops stand in for the machine's own, which the interpreter runs slowly."""
    m = kernel_cases.cpu() if kind == "cpu" else Machine(reference, torch.float16, copied=False)
    torch.manual_seed(0)
    with torch.inference_mode():
        for case in tiny_cases(m, 1, 3):
            wanted, (first, *others) = case.wanted(), case.theirs
            with Captured():
                found = first()
            bench_kernels.check(f"{case.op} {case.kind} x{case.rows}", found, wanted, case.bound)
            with Captured():
                for call in others:
                    call()


def test_the_wrappers_of_triton_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they do around a launch; the kernels themselves are not run."""
    from triton.runtime.jit import JITFunction

    launched = []
    monkeypatch.setattr(JITFunction, "run", lambda self, *_, **__: launched.append(self.fn.__name__))
    for name in ("attention", "diff_add", "launch", "norm", "product", "rope", "sample", "silu"):
        module = importlib.import_module(f"baize_engine.kernels.{name}")
        if hasattr(module, "check_device"):
            monkeypatch.setattr(module, "check_device", lambda *_: None)
    with torch.inference_mode():
        machine = kernel_cases.gpu(copied=False)
        for case in tiny_cases(machine, 1, 3):
            before = len(launched)
            with Captured():
                machine.calls(case.mine[:1])[0]()
            assert len(launched) > before, case.op


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: int(x.max()), lambda x: bool((x > 0).all()), torch.nonzero, lambda x: torch.equal(x, x),
        lambda x: x[x > 0], lambda x: x.masked_select(x > 0), lambda x: x.unique(),
        lambda x: x.__setitem__(x > 0, 1),
        lambda x: reference.sample(x[None].float(), *torch.tensor([[0.8], [0.9], [0.9], [0.0], [0], [0], [0]])),
    ],
)  # fmt: skip
def test_a_capture_refuses_what_waits(ask: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(RuntimeError, match="in a capture waits for the device"), Captured():
        ask(torch.arange(3))


class SomeWrong:
    """The ops of the CPU, of which `gate_up` computes nothing."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def gate_up(self, *, out: torch.Tensor, **_: object) -> None:
        out.zero_()


def test_a_wrong_op_and_one_that_cannot_be_made_cost_their_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, attending = kernel_cases.cpu(), bench_kernels.attending

    def too_long(m: Machine, config: ModelConfig, op: str, *numbers: int) -> kernel_cases.Case:
        if op == "attention":
            raise torch.OutOfMemoryError("no room for the keys")
        return attending(m, config, op, *numbers)

    monkeypatch.setattr(bench_kernels, "cpu", lambda: Machine(SomeWrong(real.ops), real.activation, copied=False))
    monkeypatch.setattr(bench_kernels, "attending", too_long)
    monkeypatch.setattr(bench_kernels, "ReadProbe", lambda threads: lambda: 10.0)
    small = ["--device", "cpu", "--preset", "tiny", "--rows", "1", "--kinds", "float16", "int8", "--contexts", "20"]
    small += ["--seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", *small])
    assert bench_kernels.main() == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    problems = [(row["op"], row["problem"]) for row in found["rows"] if "problem" in row]
    cases = [("float16 x1", 0.01), ("float16 x256", 0.01), ("int8 x1", 0.01), ("int8 x256", 0.05)]  # the last in bytes
    assert problems == [
        *(("gate_up", f"gate_up {case}: its error is 1, wanted at most {bound}") for case, bound in cases),
        ("attention x1, 20", "OutOfMemoryError: no room for the keys"),
    ]
    assert {row["op"] for row in found["rows"] if "us" in row} == {
        "qkv_rope_store", "linear_add o", "linear_add down", "head", "embed", "sample greedy", "sample greedy alone",
        "sample top_k top_p", "advance", "attention prefill",
    }  # fmt: skip
    assert found["of_step"] == {}


def test_a_wrong_result_ends_the_run() -> None:
    right = torch.tensor([1.0, 2.0])
    bench_kernels.check("op", [right], [right], 0.0)
    with pytest.raises(SystemExit, match=r"op: its error is 0\.5"):
        bench_kernels.check("op", [torch.tensor([1.0, 1.0])], [right], 1e-2)
    with pytest.raises(SystemExit, match="nan"):
        bench_kernels.check("op", [torch.tensor([1.0, float("nan")])], [right], 1e-2)
    with pytest.raises(SystemExit, match=r"0\.25"):
        bench_kernels.check("ids", [torch.tensor([1, 2, 3, 5])], [torch.tensor([1, 2, 3, 4])], 0.05)


def test_the_interpreter_only_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_kernels, "interpreting", lambda: True)
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", "--device", "cpu", "--preset", "125m"])
    with pytest.raises(SystemExit, match="TRITON_INTERPRET=1 only checks the GPU's kernels"):
        bench_kernels.main()


def test_the_ops_of_the_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--device cpu --preset tiny --rows 2 --kinds float16 int4 --contexts 20 --seconds 0.02"
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", *small.split()])
    assert bench_kernels.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    shape = PRESETS["tiny"]
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, "float16"))
    rows = {(row["op"], row["kind"], row["rows"]): row for row in found["rows"]}
    for kind in ("float16", "int4"):
        layer = {c.name: c for c in cost.decode_step(config, kind, 2, 20, "float32")}["gate_up"]
        row = rows["gate_up", kind, 2]
        assert row["GB/s"] * row["us"] * 1e3 * config.num_layers == pytest.approx(layer.bytes, rel=0.01)  # norms' type
        assert row["GFLOP/s"] * row["us"] * 1e3 * config.num_layers == pytest.approx(layer.flops)
        assert rows["gate_up", kind, 256]["us"] > 0  # a prompt
        shares = found["of_step"][f"{kind} x2"]
        assert sum(share for op, share in shares.items() if op != "sample top_k top_p") == pytest.approx(1)
    assert all(0 < row["p20"] <= row["us"] <= row["p80"] and row["share"] > 0 for row in found["rows"])


def test_steps_that_verify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--device cpu --preset tiny --verify 40 --kinds float16 int8 int4 --seconds 0"
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", *small.split()])
    assert bench_kernels.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["context"] == 40
    for kind in ("float16", "int8", "int4"):
        rows = [row for row in found["rows"] if row["kind"] == kind]
        assert [row["rows"] for row in rows] == list(range(1, 9))
        assert rows[0]["of_one"] == 1
        assert all(0 < row["p20"] <= row["ms"] <= row["p80"] for row in rows)
        assert all(row["of_one"] == pytest.approx(row["ms"] / rows[0]["ms"]) for row in rows)


def test_products_in_segments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--device cpu --preset tiny --segments --rows 1 5 --seconds 0"
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", *small.split()])
    assert bench_kernels.main() == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["kind"], row["op"], row["rows"]) for row in rows] == [
        (kind, op, many) for kind in ("float16", "int8", "int4") for op in ("o", "down") for many in (1, 5)
    ]
    assert all(0 < row["p20"] <= row["us"] <= row["p80"] for row in rows)
    assert all(row["of_whole"] == pytest.approx(row["us"] / row["whole_us"]) for row in rows)


def test_a_sum_that_is_off_ends_the_run() -> None:
    sums = torch.ones(3, 5)
    segment_costs.check_near(sums * 1.005, sums, 1e-2)
    for wrong in (sums * 1.02, sums * float("nan")):
        with pytest.raises(SystemExit, match="the sum of segments is off"):
            segment_costs.check_near(wrong, sums, 1e-2)


def test_a_row_that_is_not_what_it_is_by_itself_ends_the_run() -> None:
    logits = torch.randn(3, 5)
    verify_steps.check_last(3, logits, logits[2:].clone())
    with pytest.raises(SystemExit, match="the last of 3 rows"):
        verify_steps.check_last(3, logits, logits[2:].nextafter(torch.tensor(9.0)))


def test_shares_of_a_step() -> None:
    times = {"qkv_rope_store": 4, "attention": 1, "linear_add o": 2, "gate_up": 5, "linear_add down": 3,  # 15 in each layer
             "head": 40, "embed": 5, "advance": 5, "sample greedy": 20, "sample top_k top_p": 220}  # fmt: skip
    rows = [{"op": op, "kind": "int8", "rows": 1, "us": float(us)} for op, us in times.items()]
    slower = [{**row, "kind": "int4", "us": 2 * row["us"]} for row in rows if row["op"] in bench_kernels.WEIGHTED]
    failed = [{"op": "head", "kind": "float16", "rows": 1, "us": 40.0}, {"op": "norm x1", "problem": "out of memory"}]
    found = bench_kernels.of_steps([*slower, *rows, *failed], 2)
    assert found.keys() == {"int8 x1", "int4 x1"}  # float16's other ops failed
    assert found["int8 x1"]["gate_up"] == pytest.approx(10 / 100)
    assert found["int8 x1"]["sample top_k top_p"] == pytest.approx(220 / 300)
    assert found["int4 x1"]["gate_up"] == pytest.approx(20 / (2 * 29 + 110))


def test_passes_over_several_calls() -> None:
    made: list[int] = []
    calls = [lambda n=n: made.append(n) for n in range(3)]
    spread = bench_kernels.cpu_spread(calls, list, 0.01)
    assert 0 < spread.p20 <= spread.median <= spread.p80
    assert set(made) == {0, 1, 2}
