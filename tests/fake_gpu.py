"""A GPU that is not here: launches that go nowhere, a clock instead of events, and the trace that a profiler would have made.

Runs what only a GPU runs as far as it is Python.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import attribution
import pytest
import torch
from attribution import Launch
from shapes import PRESETS
from triton.runtime.jit import JITFunction

from baize_engine import backend
from baize_engine.kernels import launch, reference, sample
from baize_engine.kernels.quantized import quantize
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.steps import StepState


class Properties:
    name = "NVIDIA H100 80GB HBM3"
    uuid = "7b2c1d0e-0000-4000-8000-000000000001"
    major, minor, multi_processor_count = 9, 0, 132


def without_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrappers of kernels do everything but to compile and launch."""
    monkeypatch.setattr(JITFunction, "run", lambda self, *arguments, grid, warmup, **options: None)
    for module in (
        launch,
        *(import_module(f"baize_engine.kernels.{name}") for name in {*backend.DECODER_OPS.values()}),
    ):
        if hasattr(module, "check_device"):
            monkeypatch.setattr(module, "check_device", lambda *_: None)


def triton_ops() -> Any:
    """A GPU's ops, of which `advance` also does its work, so that a step's context is as it should be."""
    ops = backend.Ops.__new__(backend.Ops)
    ops.BEST_BLOCK = reference.BEST_BLOCK
    for op in backend.DECODER_OPS:
        setattr(ops, op, backend._triton(op, "cuda"))

    def advance(*arguments: Any) -> None:
        if arguments[0].device.type != "meta":
            reference.advance(*arguments)
        sample.advance(*arguments)

    ops.advance = advance
    return ops


def model(preset: str, kind: str = "float16", device: str = "meta") -> Llama:
    """A decoder of a preset's shape with a GPU's ops; on the device "meta" it takes no memory."""
    shape = PRESETS[preset]
    kept = "float16" if kind in ("int8", "int4") else kind
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, kept))
    weights: dict[str, Any] = {}
    for name, dims in names.packed(config).items():
        made = torch.zeros(dims, dtype=getattr(torch, kept), device=device)
        weights[name] = quantize(made, kind) if kept != kind and name in names.quantized(config) else made
    return Llama(config, weights, triton_ops(), device, getattr(torch, kept))


def launches(preset: str, rows: int, kind: str = "float16", longest: int = 256) -> list[Launch]:
    """What a step launches; `without_launches` must hold."""
    made = model(preset, kind, "meta" if kind == "float16" else "cpu")  # values are needed to quantise them
    plan = StepState(made, made.new_cache(rows * longest), rows).ops(longest)
    return attribution.launches(plan, attribution.places(plan))


def trace(
    expected: Sequence[Launch],
    steps: int = 2,
    us: float = 10.0,
    gap: float = 1.0,
    bubble: float = 5.0,
    early: float = 0.0,
) -> dict[str, Any]:
    """The chrome trace of `steps` graphs of these kernels, as Kineto writes it: `us` each, `gap` between them.

    Kernels begin `early` before the end of the one before them and wait. After each step comes a copy of its tokens.
    """
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}}]
    now = 1000.0

    def add(cat: str, name: str, ts: float, dur: float, **more: Any) -> None:
        events.append({"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 0, "tid": 7, "args": more})

    for step in range(steps):
        call = 100 + 10 * step
        host = 40.0 * step
        add("user_annotation", "launch", host, 30.0)
        add("cuda_runtime", "cudaGraphLaunch", host + 5, 20.0, correlation=call)
        add("cuda_driver", "cuGraphLaunch", host + 6, 18.0, correlation=call + 2)
        add("cuda_runtime", "cudaMemcpyAsync", host + 26, 2.0, correlation=call + 1)
        add("user_annotation", "wait", host + 31, 8.0)
        for number, each in enumerate(expected):
            begin = now - early if number else now
            add(
                "kernel",
                each.kernel,
                begin,
                now - begin + us,
                grid=list(each.grid),
                correlation=call,
                **{"graph node id": number},
            )
            now += us + gap
        now += bubble - gap
        add("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", now, 2.0, correlation=call + 1)
        now += 2.0 + bubble
    return {"schemaVersion": 1, "traceEvents": events}


class Clock:
    """Seconds that pass only by replays."""

    def __init__(self) -> None:
        self.now = 0.0


def install(monkeypatch: pytest.MonkeyPatch, replay_s: float = 1e-3) -> Clock:
    """torch.cuda as the benchmarks use it. A graph holds nothing, and its replay takes `replay_s` of the clock."""
    clock = Clock()

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.at = 0.0

        def record(self, stream: Any = None) -> None:
            self.at = clock.now

        def elapsed_time(self, other: Event) -> float:
            return (other.at - self.at) * 1e3

    class Graph:
        def replay(self) -> None:
            clock.now += replay_s

    class Stream:
        def __init__(self, device: Any = None) -> None:
            pass

        def wait_stream(self, other: Any) -> None:
            pass

    @contextmanager
    def within(*arguments: Any, **options: Any) -> Iterator[None]:
        yield

    fakes: dict[str, Any] = {
        "Event": Event, "CUDAGraph": Graph, "Stream": Stream, "graph": within, "stream": within, "device": within,
        "current_stream": Stream, "synchronize": lambda device=None: None, "set_device": lambda device: None,
        "empty_cache": lambda: None, "memory_allocated": lambda device=None: 26 * 10**9,
        "max_memory_allocated": lambda device=None: 27 * 10**9, "max_memory_reserved": lambda device=None: 28 * 10**9,
        "get_device_name": lambda device=None: Properties.name, "get_device_properties": lambda device=None: Properties,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return clock


def install_profiler(monkeypatch: pytest.MonkeyPatch, found: Callable[[], dict[str, Any]]) -> None:
    """torch.profiler.profile, whose chrome trace is `found()`."""

    class Profiler:
        def __init__(self, activities: Sequence[Any]) -> None:
            assert torch.profiler.ProfilerActivity.CUDA in activities

        def __enter__(self) -> Profiler:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def export_chrome_trace(self, path: str) -> None:
            Path(path).write_text(json.dumps(found()))

    monkeypatch.setattr(torch.profiler, "profile", Profiler)


def install_ranges(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """NVTX and cudaProfiler, whose calls are written down."""
    said: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: said.append(f"> {name}"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: said.append("<"))
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: said.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: said.append("stop"))
    return said


class NVMLError(Exception):
    """As pynvml's."""


def nvml(**changes: Any) -> types.ModuleType:
    """A module like pynvml that knows one GPU, at full load. `changes`: functions to put in place of its own, or None."""
    made = types.ModuleType("pynvml")

    def handle_of(identity: str) -> str:
        if identity != f"GPU-{Properties.uuid}":
            raise NVMLError(f"no GPU {identity}")
        return "handle"

    clocks = {1: (1755, 1980), 2: (2619, 2619)}
    functions: dict[str, Any] = {
        "NVMLError": NVMLError, "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": handle_of,
        "nvmlDeviceGetClockInfo": lambda handle, kind: clocks[kind][0],
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: clocks[kind][1],
        "nvmlDeviceGetPowerUsage": lambda handle: 512_300, "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
        "nvmlDeviceGetTemperature": lambda handle, sensor: 61,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0x4 | 0x20,
        "nvmlSystemGetDriverVersion": lambda: "580.159.04",
    }  # fmt: skip
    for name, value in {**functions, **changes}.items():
        if value is not None:
            setattr(made, name, value)
    return made
