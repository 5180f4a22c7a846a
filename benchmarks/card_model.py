"""A model of a card in simple, falsifiable formulas: rates, latencies, and how much is resident at a time.

Times are in microseconds, rates in bytes per microsecond. Pure: knows cards (cards.py), but no kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from cards import Card
from compiled import Code, Loop

SCHEDULERS = 4  # of a multiprocessor; each issues an instruction a cycle at most
SHARED_EACH = 1024  # bytes of shared memory that each program takes beside its own


def _constant(value: float, source: str) -> Any:
    return field(default=value, metadata={"source": source})


@dataclass(frozen=True)
class Constants:
    """What no data sheet says. A measurement replaces any of them: `--set name=value`."""

    streaming: float = _constant(
        0.91, "share of the specified bandwidth of a long stream: H100 copies at 3016-3089 of 3350 GB/s"
    )
    memory_us: float = _constant(0.6, "assumed: a load that finds its line in no cache")
    loaded_us: float = _constant(
        0.7, "assumed, 0.6-0.8: the same while memory is busy; by Little's law rate = bytes under way / this"
    )
    l2_us: float = _constant(0.2, "assumed: a load from L2; about 279 cycles on an L40 (arXiv 2606.22588)")
    l2_bytes: float = _constant(28.0, "assumed: bytes a cycle that L2 gives a multiprocessor, of 64 at most")
    l2_kept: float = _constant(0.8, "assumed: share of L2 of which the oldest line is not yet evicted")
    launch_us: float = _constant(
        1.3, "a kernel after another in a graph on H100 (Hazy Research, Look Ma, No Bubbles, 2025)"
    )
    dependent_us: float = _constant(
        0.8, "assumed: the same from the last program's end to what waited for it, by dependent launch"
    )
    arrive_us: float = _constant(0.6, "assumed: from a kernel's trigger to the first programs of the next one")
    between_us: float = _constant(2.5, "assumed: between the graphs of two steps")
    drain_us: float = _constant(0.5, "assumed: the last program's end after the mean program's")
    clock: float = _constant(0.9, "assumed: the clock under load as a share of the boost clock")
    alone_cycles: float = _constant(2.0, "assumed: cycles of an instruction of a warp that has a scheduler to itself")
    issue: float = _constant(0.8, "assumed: instructions a cycle that a scheduler with many warps issues")
    tensor_cycles: float = _constant(
        33.0, "assumed: from a warp's tensor instruction to the next that adds to its sums"
    )
    tensor_share: float = _constant(
        0.63, "assumed: of Hopper's specified arithmetic, what a warp's own tensor instructions reach"
    )
    barrier_cycles: float = _constant(30.0, "assumed: a barrier of a program")
    fold_cycles: float = _constant(25.0, "assumed: a step of a sum over lanes")

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise ValueError(f"{each.name} is {getattr(self, each.name)!r}, wanted more than 0")

    def changed(self, values: Mapping[str, float]) -> Constants:
        """With other values; ValueError names one that is not there."""
        known = [each.name for each in fields(self)]
        for name in values:
            if name not in known:
                raise ValueError(f"there is no constant {name!r}, wanted one of {', '.join(known)}")
        return replace(self, **values)


@dataclass(frozen=True)
class Machine:
    """A card with the constants: rates and times that follow from both."""

    card: Card
    constants: Constants = Constants()

    @property
    def dependent(self) -> bool:
        """Whether it has dependent launch: Hopper and later."""
        return self.card.capability >= (9, 0)

    @property
    def start_us(self) -> float:
        return self.constants.dependent_us if self.dependent else self.constants.launch_us

    @property
    def bandwidth(self) -> float:
        """Of a long stream."""
        return self.card.bandwidth * 1e3 * self.constants.streaming

    @property
    def cycles(self) -> float:
        """Cycles in a microsecond."""
        return self.card.clock * 1e3 * self.constants.clock

    @property
    def l2_rate(self) -> float:
        """From L2 to one multiprocessor."""
        return self.constants.l2_bytes * self.cycles

    def resident(self, code: Code, warps: int) -> int:
        """Programs that a multiprocessor holds at a time, by registers (8 a thread at a time), shared memory and warps."""
        sm = self.card.sm
        registers = sm.registers // (-(-code.registers // 8) * 8 * 32 * warps)
        most = min(registers, sm.shared // (code.shared + SHARED_EACH), sm.warps // warps, sm.programs)
        if most < 1:
            raise ValueError(
                f"a program of {warps} warps, {code.registers} registers a thread and {code.shared} bytes of shared memory "
                f"does not fit a multiprocessor of {self.card.name}"
            )
        return most

    def rate(self, programs: int, under_way: float) -> float:
        """From memory to so many programs, each with so many bytes under way: Little's law, the way from L2, and memory."""
        able = min(programs, self.card.sms) * self.l2_rate
        return min(self.bandwidth, able, programs * under_way / self.constants.loaded_us)

    def kept(self, fetched: float, then: float) -> float:
        """The share of `fetched` bytes that is still in L2 when `then` bytes more have come: the oldest go first."""
        room = self.card.l2 * 2**20 * self.constants.l2_kept
        return min(1.0, max(0.0, (room - then) / fetched)) if fetched else 1.0

    def alone_us(self, instructions: float, barriers: int = 0, tensor: int = 0) -> float:
        """One warp's way through instructions with nothing beside it. `tensor` of them add to the same sums and wait for each
        other; what stands between them is issued meanwhile."""
        c = self.constants
        cycles = max(instructions * c.alone_cycles, tensor * c.tensor_cycles) + barriers * c.barrier_cycles
        return cycles / self.cycles

    @property
    def tensor_interval(self) -> float:
        """Cycles between the tensor instructions (16 x 8 x 16) of one scheduler.

        A multiprocessor does a power of two of operations in a cycle; the peak of a data sheet may be of another clock.
        """
        share = self.constants.tensor_share if self.dependent else 1.0
        each = 2 ** round(math.log2(self.card.half_tflops * 1e3 / (self.card.sms * self.card.clock)))
        return 2 * 16 * 8 * 16 / (each * share / SCHEDULERS)

    def loop_us(self, loop: Loop, warps: int, programs: int, chained: int = 0) -> float:
        """One run through a loop of programs that share a multiprocessor: a lone warp's time, or that of the schedulers."""
        sharing = -(-programs * warps // SCHEDULERS)
        busy = max(loop.instructions / self.constants.issue, loop.tensor * self.tensor_interval) * sharing
        if programs == 1:  # others have something to do while one of them waits at a barrier
            busy += loop.barriers * self.constants.barrier_cycles
        return max(self.alone_us(loop.instructions, loop.barriers, chained), busy / self.cycles)


@dataclass(frozen=True)
class Estimate:
    """A kernel's (or an op's) predicted time: its body, what limits that, and what comes on top of it."""

    body: float
    limit: str  # "bandwidth", "L2" or "arithmetic"
    latency: float
    tail: float
    read: float = 0.0  # bytes from memory
    programs: int = 1
    slots: int = 1  # programs that the card holds at a time
    ending: float = 0.0  # of the latency, what comes behind its loop

    @property
    def us(self) -> float:
        return self.body + self.latency + self.tail

    @property
    def bound(self) -> str:
        """The greatest part."""
        return max((self.body, self.limit), (self.latency, "latency"), (self.tail, "tail"))[1]

    def then(self, other: Estimate) -> Estimate:
        """This kernel and `other` behind it as one op."""
        greater = max(self, other, key=lambda each: each.body)
        return replace(
            greater, body=self.body + other.body, latency=self.latency + other.latency, tail=self.tail + other.tail,
            read=self.read + other.read,
        )  # fmt: skip

    @property
    def last_wave(self) -> int:
        """Programs of the last wave."""
        return (self.programs - 1) % self.slots + 1


def waves(programs: int, slots: int) -> list[int]:
    """Programs of each wave: whole ones, then the rest."""
    return [slots] * (programs // slots) + ([programs % slots] if programs % slots else [])
