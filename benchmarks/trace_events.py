"""What ran on a device, as events of a chrome trace: its kernels, and the idle gaps between them. Pure; knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of a chrome trace
NAME = 60  # characters of a kernel's name in the table


@dataclass(frozen=True)
class Event:
    """Something that ran, in microseconds of any clock."""

    name: str
    start: float
    duration: float


def device_events(trace: Mapping[str, Any]) -> list[Event]:
    """What ran on the GPU by a chrome trace, in order; a kernel's grid is part of its name, for one kernel has many jobs."""
    found = [
        Event(_named(event), float(event["ts"]), float(event["dur"]))
        for event in trace["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in ON_GPU
    ]
    return sorted(found, key=lambda event: event.start)


def _named(event: Mapping[str, Any]) -> str:
    grid = event.get("args", {}).get("grid")
    return event["name"] if grid is None else f"{event['name'][:NAME]} {'x'.join(map(str, grid))}"


def gaps(events: Sequence[Event]) -> list[float]:
    """Idle microseconds before each event, 0 before the first and where it overlaps any before it. `events` in order."""
    found, end = [], events[0].start if events else 0.0
    for event in events:
        found.append(max(0.0, event.start - end))
        end = max(end, event.start + event.duration)
    return found


def kernel_rows(events: Sequence[Event]) -> list[dict[str, Any]]:
    """A row for each name, the longest first; `share` is of the time of all events."""
    grouped: dict[str, list[tuple[float, float]]] = {}
    for event, gap in zip(events, gaps(events), strict=True):
        grouped.setdefault(event.name, []).append((event.duration, gap))
    whole = sum(event.duration for event in events)
    rows = []
    for name, many in grouped.items():
        total = sum(duration for duration, _ in many)
        mean_gap = sum(gap for _, gap in many) / len(many)
        rows.append(
            {"kernel": name, "calls": len(many), "us": total, "share": total / whole, "gap_before_us": mean_gap}
        )
    return sorted(rows, key=lambda row: -row["us"])


def span(events: Sequence[Event]) -> float:
    """Microseconds from the first begin to the last end."""
    return max(event.start + event.duration for event in events) - events[0].start
