"""Finds the op and layer of each kernel of a replayed graph, by its place in the order of launches.

A graph's kernels carry no op and no shape, and one kernel with one grid has several jobs (at 13B linear_add's o and down are
both `_product_kernel 1x160x1`). The graph keeps the order in which the plan launched them, so the plan is run once op by op,
Triton's launches are recorded, and the kernels of a replay are matched with that list; names and grids must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from trace_events import Event, Label

from baize_engine.backend.plan_ops import PlanOp


class Mismatch(ValueError):
    """Kernels that ran and launches that were written down are not the same."""


@dataclass(frozen=True)
class Place:
    """Where an op stands in a plan. `op` is its name in model/cost.py; the first layer is 0."""

    op: str
    layer: int | None


@dataclass(frozen=True)
class Launch:
    """A kernel that an op launched. `grid` always has three numbers."""

    place: Place
    kernel: str
    grid: tuple[int, ...]


def places(plan: Iterable[PlanOp]) -> list[Place]:
    """The place of each op of a step. A layer begins with qkv_rope_store and has two linear_add: o follows attention."""
    found: list[Place] = []
    layer, before = -1, ""
    for op in plan:
        name = op.name
        if name == "qkv_rope_store":
            layer += 1
        label = f"linear_add {'o' if before == 'attention' else 'down'}" if name == "linear_add" else name
        found.append(Place(label, None if layer < 0 or name in ("head", "sample") else layer))
        before = name
    return found


def launches(plan: Sequence[Callable[[], Any]], where: Sequence[Place]) -> list[Launch]:
    """Runs each op of a plan once, and tells what Triton launched meanwhile. Kernels of torch's own are not seen."""
    found: list[Launch] = []
    for place, op in zip(where, plan, strict=True):
        with _triton_launches(lambda kernel, grid, place=place: found.append(Launch(place, kernel, grid))):  # type: ignore[misc]
            op()
    return found


@contextmanager
def _triton_launches(seen: Callable[[str, tuple[int, ...]], None]) -> Iterator[None]:
    """Calls `seen` at each launch. Triton's own hook is told the kernel but not the grid."""
    from triton.runtime.jit import JITFunction

    before = JITFunction.run

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if not warmup:
            seen(self.fn.__name__, (*grid, 1, 1)[:3])
        return before(self, *arguments, grid=grid, warmup=warmup, **options)

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = before


def attributed(events: Sequence[Event], expected: Sequence[Launch]) -> list[tuple[Label, Event]]:
    """Each event of one step with what it was for; Mismatch names the first that is not the one expected."""
    for number, (event, launch) in enumerate(zip(events, expected, strict=False)):
        if not event.name.startswith(launch.kernel) or (event.grid and event.grid != launch.grid):
            wanted = Event(launch.kernel, 0, 0, launch.grid).title
            where = f"{launch.place.op}{'' if launch.place.layer is None else f' of layer {launch.place.layer}'}"
            raise Mismatch(f"kernel {number} of the step is {event.title}, wanted {wanted} for {where}")
    if len(events) != len(expected):
        raise Mismatch(f"the step has {len(events)} kernels, the plan launched {len(expected)}")
    return [
        (Label(launch.place.op, launch.place.layer, event.title), event)
        for event, launch in zip(events, expected, strict=True)
    ]


def by_name(events: Sequence[Event]) -> list[tuple[Label, Event]]:
    """The same where places are not known: each kernel for itself."""
    return [(Label("", None, event.title), event) for event in events]
