"""Times, gaps and steps of made-up traces: kernels that overlap, copies between steps, and what belongs to the host."""

from __future__ import annotations

import random

import fake_gpu
import pytest
from attribution import Launch, Place
from trace_events import (
    Event,
    Label,
    bubbles,
    device_events,
    gaps,
    graph_launches,
    kernel_rows,
    numbers,
    op_times,
    own_times,
    span,
    step_rows,
    steps,
)

LAUNCHES = [
    Launch(Place("embed", None), "_embed_kernel", (1, 5, 1)),
    Launch(Place("head", None), "_product_kernel", (1, 9, 1)),
]


def labelled(*events: Event) -> list[tuple[Label, Event]]:
    return [(Label(event.name, None, event.name), event) for event in events]


def test_gaps_count_idle_time_only() -> None:
    """b begins within a, c before the end of a, though after b's: a launch that overlaps leaves no gap, nor a negative one."""
    events = [Event("a", 100, 10), Event("b", 102, 3), Event("c", 109, 2), Event("d", 115, 5), Event("e", 120, 1)]
    assert gaps(events) == [0, 0, 0, 4, 0]
    assert own_times(events) == [10, 0, 1, 5, 1]
    assert span(events) == 21
    assert gaps([]) == own_times([]) == []


def test_a_wait_is_not_a_kernels_time() -> None:
    """As dependent launch is traced: `qkv` begins with `down`, 47 us before it has anything to do, then runs for 25."""
    events = [Event("down", 0, 47), Event("qkv", 0.5, 71.5), Event("attention", 1, 76)]
    assert own_times(events) == [47, 25, 5]
    assert sum(own_times(events)) == span(events)
    rows = {row["kernel"]: row for row in kernel_rows([labelled(*events)])}
    assert {name: row["us"] for name, row in rows.items()} == {"down": 47, "qkv": 25, "attention": 5}
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(20))
def test_own_times_and_gaps_make_up_the_step(seed: int) -> None:
    drawn = random.Random(seed)
    events = sorted(
        (Event("k", drawn.uniform(0, 100), drawn.uniform(0, 20)) for _ in range(30)), key=lambda event: event.start
    )
    assert sum(own_times(events)) + sum(gaps(events)) == pytest.approx(span(events))
    assert min(own_times(events)) >= 0
    assert all(own <= event.duration + 1e-9 for own, event in zip(own_times(events), events, strict=True))


def test_kernels_by_op() -> None:
    first = [
        (Label("linear_add o", 0, "product 1x160x1"), Event("product", 0, 2)),
        (Label("linear_add down", 0, "product 1x160x1"), Event("product", 3, 5)),
        (Label("linear_add o", 1, "product 1x160x1"), Event("product", 11, 2)),
        (Label("linear_add down", 1, "product 1x160x1"), Event("product", 13, 1)),
    ]
    down, o = kernel_rows([first])
    assert down == {
        "op": "linear_add down", "layers": "0-1", "kernel": "product 1x160x1", "calls": 2, "us": 6,
        "share": pytest.approx(6 / 14), "gap_before_us": 0.5,
    }  # fmt: skip
    assert (o["op"], o["us"], o["gap_before_us"]) == ("linear_add o", 4, 1.5)
    assert sum(row["us"] for row in (down, o)) + sum(gaps([event for _, event in first])) == 14
    slower = [(label, Event(event.name, event.start * 2, event.duration * 2)) for label, event in first]
    mean = kernel_rows([first, slower])[0]
    assert (mean["calls"], mean["us"], mean["share"]) == (2, 9, pytest.approx(6 / 14))
    assert op_times([first, slower]) == {"linear_add o": 6, "linear_add down": 9}


def test_only_what_ran_on_the_gpu_counts() -> None:
    launch = {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 1, "dur": 90}
    copy = {"ph": "X", "cat": "gpu_memcpy", "name": "copy", "ts": 30.5, "dur": 1}
    flow = {"ph": "f", "cat": "ac2g", "name": "ac2g", "ts": 10}
    kernels = [
        {"ph": "X", "cat": "kernel", "name": "product", "ts": ts, "dur": 4.25, "args": {"grid": [rows, 1, 1]}}
        for ts, rows in ((20.0, 64), (10.0, 32))
    ]
    found = device_events({"traceEvents": [launch, copy, flow, *kernels]})
    assert found == [
        Event("product", 10.0, 4.25, (32, 1, 1)), Event("product", 20.0, 4.25, (64, 1, 1)), Event("copy", 30.5, 1.0),
    ]  # fmt: skip
    assert [event.title for event in found] == ["product 32x1x1", "product 64x1x1", "copy"]


def test_steps_are_parted_by_the_call_that_launched_them() -> None:
    trace = fake_gpu.trace(LAUNCHES, steps=3, us=10, gap=1, bubble=5)
    found = steps(trace)
    assert [[event.name for event in step] for step in found] == [["_embed_kernel", "_product_kernel"]] * 3
    assert [span(step) for step in found] == [21] * 3
    assert [launch.call for launch in graph_launches(trace)] == [100, 110, 120]
    assert bubbles(trace) == [10, 10]  # before the copy of the tokens, and behind it
    assert step_rows(trace) == [
        {
            "step": n,
            "device_us": 21,
            **({"bubble_us": 10} if n else {}),
            "launch_us": 30,
            "graph_launch_us": 20,
            "wait_us": 8,
        }
        for n in range(3)
    ]


def test_a_trace_that_does_not_say_which_call_launched_a_kernel() -> None:
    trace = fake_gpu.trace(LAUNCHES, steps=3)
    wanted = step_rows(trace)
    for event in trace["traceEvents"]:
        event.get("args", {}).pop("correlation", None)
    assert [len(step) for step in steps(trace)] == [2, 2, 2]
    assert step_rows(trace) == wanted
    trace["traceEvents"].append({**trace["traceEvents"][-1], "cat": "kernel", "args": {"grid": [1, 1, 1]}})
    assert steps(trace) == []  # seven kernels are not three equal steps
    assert bubbles(trace) == []
    assert [row.keys() for row in step_rows(trace)] == [{"step", "launch_us", "graph_launch_us", "wait_us"}] * 3


def test_steps_of_a_cpu_have_the_hosts_lane_alone() -> None:
    spans = [{"ph": "X", "cat": "user_annotation", "name": "launch", "ts": ts, "dur": 9} for ts in (0, 20)]
    assert step_rows({"traceEvents": spans}) == [{"step": 0, "launch_us": 9}, {"step": 1, "launch_us": 9}]
    assert step_rows({"traceEvents": []}) == []


@pytest.mark.parametrize(
    ("many", "text"), [([], ""), ([5], "5"), ([0, 1, 2, 3], "0-3"), ([7, 0, 1, 3], "0-1, 3, 7"), ([2, 3], "2-3")]
)
def test_numbers(many: list[int], text: str) -> None:
    assert numbers(many) == text
