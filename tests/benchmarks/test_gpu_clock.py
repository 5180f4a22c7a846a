"""benchmarks/gpu.py without a GPU: a stand-in for torch.cuda whose every call takes a known time on its own clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import gpu
import pytest
import torch

CALL = 3e-6  # seconds of a call on the device


class Graph:
    calls = 0

    def __init__(self, device: Device) -> None:
        self._device = device

    def replay(self) -> None:
        self._device.seconds += self.calls * CALL
        self._device.replays.append(self.calls)


class Event:
    def __init__(self, device: Device) -> None:
        self._device = device

    def record(self) -> None:
        self.at = self._device.seconds

    def elapsed_time(self, end: Event) -> float:
        assert self._device.waited
        return 1e3 * (end.at - self.at)


class Device:
    """What gpu.py asks of torch.cuda."""

    def __init__(self) -> None:
        self.seconds, self.replays, self.waited = 0.0, list[int](), False
        self.capturing: Graph | None = None

    def call(self) -> None:
        if self.capturing is None:
            self.seconds += 100 * CALL  # it compiles
        else:
            self.capturing.calls += 1

    @contextmanager
    def graph(self, graph: Graph, stream: object) -> Iterator[None]:
        self.capturing = graph
        yield
        self.capturing = None

    def synchronize(self, *_: object) -> None:
        self.waited = True


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    stream = type("Stream", (), {"wait_stream": lambda self, other: None})
    fakes: dict[str, Callable[..., Any]] = {
        "Stream": lambda device: stream(), "current_stream": lambda device: stream(),
        "stream": lambda stream: nullcontext(), "graph": made.graph,
        "synchronize": made.synchronize, "CUDAGraph": lambda: Graph(made), "Event": lambda enable_timing: Event(made),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return made


def test_a_call_is_timed_by_replays_of_many(device: Device) -> None:
    spread = gpu.gpu_spread([device.call] * 5, 7)
    assert (spread.p20, spread.median, spread.p80) == pytest.approx((CALL, CALL, CALL))
    few, many = 5, 5 * gpu.ROUNDS  # 15 us once: as many rounds as a graph may have
    assert device.replays == [few] * (2 + 3) + [many] * (2 + 7)


def test_a_long_call_is_not_repeated(device: Device) -> None:
    calls = [device.call] * 1000  # 3 ms
    assert gpu.gpu_spread(calls, 4).median == pytest.approx(CALL)
    assert set(device.replays) == {1000}


def test_the_ceilings_are_of_bytes_and_operations(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call takes CALL, whatever it does."""
    monkeypatch.setattr(gpu, "SIDE", {"cuda": 16})
    monkeypatch.setattr(gpu, "COPIED", 1 << 10)
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, device=None, **rest: randn(*shape, **rest))
    monkeypatch.setattr(torch, "mm", lambda left, right, out: device.call())
    monkeypatch.setattr(torch.Tensor, "copy_", lambda target, source: device.call())
    found = gpu.ceilings("cuda")
    assert found["copy_GB/s"] == pytest.approx(2 * (1 << 10) / CALL / 1e9)
    assert found["matmul_TFLOP/s"] == pytest.approx(2 * 16**3 / CALL / 1e12)
