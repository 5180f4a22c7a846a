"""Kernels of a step by op and layer: the launches of real plans at 13B, and traces that agree with them or do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import attribution
import fake_gpu
import pytest
from attribution import Launch, Mismatch, Place
from trace_events import device_events, kernel_rows, op_times, span, steps
from triton.runtime.jit import JITFunction

from baize_engine.kernels import settings
from baize_engine.model.prompt_runner import new_cache
from baize_engine.model.step_state import StepState


@pytest.fixture(autouse=True)
def no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.without_launches(monkeypatch)


def test_the_launches_of_a_step() -> None:
    found = fake_gpu.launches("13b", 1)
    assert [launch.place.op for launch in found[:8]] == [
        "advance", "embed", "qkv_rope_store", "attention", "attention", "linear_add o", "gate_up", "linear_add down",
    ]  # fmt: skip
    assert [launch.place.layer for launch in found[:8]] == [None, None, 0, 0, 0, 0, 0, 0]
    assert [launch.place for launch in found[-3:]] == [
        Place("linear_add down", 39), Place("head", None), Place("sample", None),
    ]  # fmt: skip
    o, down = (next(each for each in found if each.place.op == f"linear_add {part}") for part in ("o", "down"))
    assert (o.kernel, o.grid) == (down.kernel, down.grid)  # nothing but their places tells them apart
    assert len(found) == 2 + 40 * 6 + 2


def test_ops_of_one_grid_are_told_apart() -> None:
    """linear_add's o and down at 13B: the same kernel and grid, and very different times."""
    expected = fake_gpu.launches("13b", 1)
    trace = fake_gpu.trace(expected, steps=2, us=5, gap=0)
    ops = Counter(launch.place.op for launch in expected)
    for step in range(2):
        events = [event for event in trace["traceEvents"] if event["args"].get("correlation") == 100 + 10 * step]
        for event, launch in zip([e for e in events if e["cat"] == "kernel"], expected, strict=True):
            if launch.place.op == "linear_add down":
                event["dur"] = 7.0  # ends 2 us after the next one began, whose own time is the less
    labelled = [attribution.attributed(step, expected) for step in steps(trace)]
    rows = {row["op"]: row for row in kernel_rows(labelled) if row["kernel"] == "_product_kernel 1x160x1"}
    assert rows.keys() == {"linear_add o", "linear_add down"}
    assert (rows["linear_add o"]["us"], rows["linear_add down"]["us"]) == pytest.approx((40 * 5, 40 * 7))
    assert all((row["layers"], row["calls"]) == ("0-39", 40) for row in rows.values())
    times = op_times(labelled)
    assert times.keys() == ops.keys()
    assert sum(times.values()) == pytest.approx(span(steps(trace)[0]))


@pytest.mark.parametrize("rows", [1, 3, 8, 64])
@pytest.mark.parametrize("kind", ["float16", "int8", "int4"])
def test_every_kernel_of_a_step_has_a_place(rows: int, kind: str) -> None:
    """A norm that is a kernel of its own belongs to the product behind it."""
    expected = fake_gpu.launches("tiny", rows, kind)
    for step in steps(fake_gpu.trace(expected, early=3.0)):
        found = attribution.attributed(step, expected)
        assert [(label.op, label.layer) for label, _ in found] == [
            (each.place.op, each.place.layer) for each in expected
        ]
    norms = {launch.place.op for launch in expected if launch.kernel == "_rms_norm_kernel"}
    bits = {"float16": 16, "int8": 8, "int4": 4}[kind]
    assert norms == {op for op in settings.WITH_NORM if not settings.product(op, bits, rows).fuse_norm}


def test_launches_are_no_longer_watched_afterwards() -> None:
    before = JITFunction.run
    fake_gpu.launches("tiny", 1)
    assert JITFunction.run is before


def test_a_plan_that_fails_ends_the_watch() -> None:
    def broken() -> None:
        raise RuntimeError("out of memory")

    before = JITFunction.run
    with pytest.raises(RuntimeError, match="out of memory"):
        attribution.launches([broken], [Place("embed", None)])
    assert JITFunction.run is before


def _other_name(launches: list[Launch]) -> list[Launch]:
    return [*launches[:3], replace(launches[3], kernel="_flash_kernel"), *launches[4:]]


def _other_grid(launches: list[Launch]) -> list[Launch]:
    return [*launches[:5], replace(launches[5], grid=(1, 7, 1)), *launches[6:]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (_other_name, r"kernel 3 of the step is _flash_kernel .* wanted _attention_decode_kernel .* for attention of layer 0"),
        (_other_grid, r"kernel 5 of the step is _product_kernel 1x7x1, wanted _product_kernel 1x2x1 for linear_add o of"),
        (lambda all_of_them: all_of_them[:-1], "the step has 15 kernels, the plan launched 16"),
        (lambda all_of_them: [*all_of_them, all_of_them[-1]], "the step has 17 kernels, the plan launched 16"),
    ],
)  # fmt: skip
def test_other_kernels_are_a_mismatch(changed: Callable[[list[Launch]], list[Launch]], message: str) -> None:
    expected = fake_gpu.launches("tiny", 1)
    (step,) = steps(fake_gpu.trace(changed(expected), steps=1))
    with pytest.raises(Mismatch, match=message):
        attribution.attributed(step, expected)


def test_torchs_own_kernels_have_no_place() -> None:
    """With BAIZE_BACKEND=torch nothing is launched by Triton: said, and the kernels stand by their names."""
    events = device_events(fake_gpu.trace(fake_gpu.launches("tiny", 1), steps=1))[:4]
    with pytest.raises(Mismatch, match="the step has 4 kernels, the plan launched 0"):
        attribution.attributed(events, [])
    (row, *_) = kernel_rows([attribution.by_name(events)])
    assert (row["op"], row["layers"]) == ("", "")


def test_places_follow_the_plan() -> None:
    made = fake_gpu.model("tiny")
    plan = StepState(made, new_cache(made, 256), 1).ops(256)
    assert [place.layer for place in attribution.places(plan)] == [None, None, *[0] * 5, *[1] * 5, None, None]
