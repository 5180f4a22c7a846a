"""The events of a device in a chrome trace: its kernels, the idle gaps between them, and the steps they belong to.

Times are the device's own; those of the host stand apart, and none of the two is ever subtracted from the other.
Where kernels are launched dependently (sm_90), one may begin long before the one before it has ended, only to wait for it, and
the trace counts the wait as its duration. Times here exclude waits: an event's own time is that after the end of every event
that began before it, so that times and gaps together make up the step. What it fetched early is in the time of those.
Pure; knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of a chrome trace
NAME = 60  # characters of a kernel's name in the table


@dataclass(frozen=True)
class Event:
    """Something that ran, in microseconds of any clock. `call`: the number of the host's call that brought it about."""

    name: str
    start: float
    duration: float
    grid: tuple[int, ...] = ()
    call: int | None = None

    @property
    def end(self) -> float:
        return self.start + self.duration

    @property
    def title(self) -> str:
        """The name with the grid, for one kernel has many jobs."""
        return f"{self.name[:NAME]} {'x'.join(map(str, self.grid))}" if self.grid else self.name


@dataclass(frozen=True)
class Label:
    """What an event was for: an op of the plan, and the layer where it stands in one."""

    op: str
    layer: int | None
    kernel: str


def device_events(trace: Mapping[str, Any]) -> list[Event]:
    """What ran on the GPU by a chrome trace, in order."""
    return _events(trace, ON_GPU)


def graph_launches(trace: Mapping[str, Any]) -> list[Event]:
    """The host's calls that launched a graph, in order, without the driver's calls beneath them, which some traces have."""
    return [event for event in _events(trace, ("cuda_runtime",)) if event.name.startswith("cudaGraphLaunch")]


def host_spans(trace: Mapping[str, Any], name: str) -> list[Event]:
    """The spans that `torch.profiler.record_function(name)` marked, in order."""
    return [event for event in _events(trace, ("user_annotation",)) if event.name == name]


def _events(trace: Mapping[str, Any], categories: Sequence[str]) -> list[Event]:
    found = []
    for event in trace["traceEvents"]:
        if event.get("ph") == "X" and event.get("cat") in categories:
            more = event.get("args", {})
            grid = tuple(more.get("grid", ()))
            found.append(Event(event["name"], float(event["ts"]), float(event["dur"]), grid, more.get("correlation")))
    return sorted(found, key=lambda event: event.start)


def gaps(events: Sequence[Event]) -> list[float]:
    """Idle microseconds before each event, 0 before the first and where it overlaps any before it. `events` in order."""
    found, end = [], events[0].start if events else 0.0
    for event in events:
        found.append(max(0.0, event.start - end))
        end = max(end, event.end)
    return found


def own_times(events: Sequence[Event]) -> list[float]:
    """Microseconds of each event after the end of all before it, waits excluded. `events` in order."""
    found, end = [], events[0].start if events else 0.0
    for event in events:
        found.append(max(0.0, event.end - max(event.start, end)))
        end = max(end, event.end)
    return found


def span(events: Iterable[Event]) -> float:
    """Microseconds from the first begin to the last end."""
    events = list(events)
    return max(event.end for event in events) - min(event.start for event in events)


def steps(trace: Mapping[str, Any]) -> list[list[Event]]:
    """The device's events of each graph launch, in order; what no graph brought about, such as a copy, is in none.

    Where the trace does not say which launch a kernel belongs to, each launch gets as many, in order, if that comes out even.
    """
    calls = [launch.call for launch in graph_launches(trace)]
    everything = device_events(trace)
    found = [[event for event in everything if call is not None and event.call == call] for call in calls]
    if any(found):
        return [events for events in found if events]
    kernels = [event for event in everything if event.grid]
    size, rest = divmod(len(kernels), len(calls)) if calls else (0, 1)
    return [] if rest or not size else [kernels[n : n + size] for n in range(0, len(kernels), size)]


def bubbles(trace: Mapping[str, Any]) -> list[float]:
    """Microseconds that the device did nothing between each step and the one before it; what lies between may be copies."""
    step_of = {event: number for number, events in enumerate(steps(trace)) for event in events}
    everything = device_events(trace)
    found: list[float] = []
    idle, current = 0.0, None
    for event, gap in zip(everything, gaps(everything), strict=True):
        number = step_of.get(event)
        if number is None:
            idle += gap
        elif number != current:
            found.append(idle + gap)
            idle, current = 0.0, number
    return found[1:]


def step_rows(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each step in the trace: the device's lane where there is one, and the host's.

    `device_us`: first begin to last end; `bubble_us`: how long the device did nothing before it, which the first step lacks.
    `launch_us`, `wait_us`: what the host spent on launching the step, its graph launch within, and on waiting for tokens.
    """
    lanes: dict[str, list[float | None]] = {
        "device_us": [span(events) for events in steps(trace)],
        "bubble_us": [None, *bubbles(trace)],
        "launch_us": [event.duration for event in host_spans(trace, "launch")],
        "graph_launch_us": [event.duration for event in graph_launches(trace)],
        "wait_us": [event.duration for event in host_spans(trace, "wait")],
    }
    count = max(len(values) for key, values in lanes.items() if key != "bubble_us")
    rows: list[dict[str, Any]] = []
    for n in range(count):
        there = {key: values[n] for key, values in lanes.items() if n < len(values)}
        rows.append({"step": n, **{key: value for key, value in there.items() if value is not None}})
    return rows


def kernel_rows(labelled: Sequence[Sequence[tuple[Label, Event]]]) -> list[dict[str, Any]]:
    """A row for each op and kernel over all layers, the longest first, as the mean of the steps given.

    `us`, of all calls in a step, excludes waits for the kernel before; `share` is of the whole step; `gap_before_us`, the mean,
    is idle time.
    """
    grouped: dict[tuple[str, str], list[tuple[int | None, float, float]]] = {}
    for step in labelled:
        events = [event for _, event in step]
        for (label, _), own, gap in zip(step, own_times(events), gaps(events), strict=True):
            grouped.setdefault((label.op, label.kernel), []).append((label.layer, own, gap))
    whole = sum(span(event for _, event in step) for step in labelled)
    rows = []
    for (op, kernel), many in grouped.items():
        total = sum(own for _, own, _ in many)
        rows.append(
            {
                "op": op, "layers": numbers({layer for layer, _, _ in many if layer is not None}), "kernel": kernel,
                "calls": len(many) / len(labelled), "us": total / len(labelled), "share": total / whole,
                "gap_before_us": sum(gap for _, _, gap in many) / len(many),
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: -row["us"])


def op_times(labelled: Sequence[Sequence[tuple[Label, Event]]]) -> dict[str, float]:
    """Microseconds of all calls of each op in a step, as the mean of the steps given."""
    found: dict[str, float] = {}
    for step in labelled:
        for (label, _), own in zip(step, own_times([event for _, event in step]), strict=True):
            found[label.op] = found.get(label.op, 0.0) + own / len(labelled)
    return found


def numbers(many: Iterable[int]) -> str:
    """Whole numbers as ranges: 0-3, 5."""
    parts: list[list[int]] = []
    for number in sorted(many):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
